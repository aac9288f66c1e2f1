"""A table of measurements and their goals."""

import dataclasses


@dataclasses.dataclass
class Row:
    """One line of the table: a measurement and its goal."""

    what: str
    value: float
    unit: str
    goal: str
    reached: bool

    def __str__(self):
        return f"{self.what:<62}{self.value:>10.3f} {self.unit:<12}{self.goal:<10}{'yes' if self.reached else 'NO'}"


class Report:
    """Collects measurements and formats them as a table."""

    def __init__(self):
        self.rows = []
        self.data = {}

    def at_least(self, what, value, goal, unit="times"):
        self.rows.append(Row(what, value, unit, f">= {goal}", value >= goal))

    def at_most(self, what, value, goal, unit="of plain"):
        self.rows.append(Row(what, value, unit, f"<= {goal}", value <= goal))

    def table(self):
        header = f"{'forward + backward':<62}{'measured':>10} {'':<12}{'goal':<10}reached"
        return "\n".join([header, "-" * len(header), *map(str, self.rows)])
