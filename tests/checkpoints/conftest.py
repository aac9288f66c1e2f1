from tests.training_fixtures import command_line, data_root, full_disk, make_checkpoint, make_config, own_cache

__all__ = ["command_line", "data_root", "full_disk", "make_checkpoint", "make_config", "own_cache"]
