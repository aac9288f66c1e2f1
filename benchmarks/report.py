"""Figures, each beside the goal that it is held against."""

import dataclasses


@dataclasses.dataclass
class Row:
    """One line of the table: a figure, and the goal that it is held against."""

    what: str
    figure: float
    unit: str
    goal: str
    reached: bool

    def __str__(self):
        return f"{self.what:<62}{self.figure:>10.3f} {self.unit:<12}{self.goal:<10}{'yes' if self.reached else 'NO'}"


class Report:
    """Collects figures; prints and writes them."""

    def __init__(self):
        self.rows = []
        self.data = {}

    def at_least(self, what, figure, goal, unit="times"):
        self.rows.append(Row(what, figure, unit, f">= {goal}", figure >= goal))

    def at_most(self, what, figure, goal, unit="of plain"):
        self.rows.append(Row(what, figure, unit, f"<= {goal}", figure <= goal))

    def table(self):
        header = f"{'forward + backward':<62}{'measured':>10} {'':<12}{'goal':<10}reached"
        return "\n".join([header, "-" * len(header), *map(str, self.rows)])
