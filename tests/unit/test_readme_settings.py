"""README's table of settings is the settings."""

from deploy.settings_table import README, rendered


def test_the_table_is_up_to_date() -> None:
    readme = README.read_text("utf-8")
    assert readme == rendered(readme), "run `make docs`"
