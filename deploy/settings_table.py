"""`python -m deploy.settings_table` writes README's table of settings from the settings themselves."""

from pathlib import Path

from pydantic import SecretStr

from consumer.settings import ConsumerSettings
from gateway.settings import GatewaySettings
from schemas.settings import ProcessSettings

README = Path(__file__).parents[1] / "README.md"
BEGIN = "<!-- settings: written by `make docs`, checked by tests -->"
END = "<!-- /settings -->"


def tables() -> str:
    """Markdown: one table a process."""
    return "\n\n".join(f"**{title}**\n\n{_table(settings)}" for title, settings in _PROCESSES.items())


_PROCESSES: dict[str, type[ProcessSettings]] = {"Gateway": GatewaySettings, "Consumer": ConsumerSettings}


def _table(settings: type[ProcessSettings]) -> str:
    rows = ["| variable | default | |", "|---|---|---|"]
    for variable, name in settings.variables().items():
        field = settings.model_fields[name]
        rows.append(f"| `{variable}` | {_text(field.default)} | {field.description} |")
    return "\n".join(rows)


def _text(default: object) -> str:
    if isinstance(default, SecretStr):
        default = default.get_secret_value()
    return "" if default in (None, ()) else f"`{default}`"


def rendered(readme: str) -> str:
    """README's text with the tables of now."""
    head, rest = readme.split(BEGIN)
    _, tail = rest.split(END)
    return f"{head}{BEGIN}\n\n{tables()}\n\n{END}{tail}"


if __name__ == "__main__":
    README.write_text(rendered(README.read_text("utf-8")), "utf-8")
