from tests.training_fixtures import command_line, data_root, make_checkpoint, make_config, own_cache  # noqa: F401
