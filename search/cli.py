"""The `ropewalk` command: reads the command line and configuration files, runs, and reports errors in one line."""

import argparse
import logging
import re
import sys
from collections.abc import Sequence
from dataclasses import fields

from jsonargparse import ActionConfigFile, ArgumentParser, set_parsing_settings  # type: ignore[attr-defined]
from optuna.exceptions import StorageInternalError

from search.config import SearchConfig

DESCRIPTION = "Find the RoPE rescale factors that let a language model read beyond its training window."


class _DashedParser(ArgumentParser):
    """Spells options with dashes in the help; configuration files keep underscores."""

    def format_help(self, formatter: argparse.HelpFormatter | None = None) -> str:
        return re.sub(r"--[\w.]+", lambda match: match[0].replace("_", "-"), super().format_help(formatter))


def build_search_parser() -> ArgumentParser:
    """Return the parser of `ropewalk search`."""
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = _DashedParser(
        exit_on_error=False, allow_abbrev=False, description="Search factors and measure them beside every formula."
    )
    parser.add_argument("--config", action=ActionConfigFile, help="YAML file of these options; later options win")
    parser.add_class_arguments(SearchConfig)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code: 0, or 2 where what the user gave cannot be used."""
    search = build_search_parser()
    parser = _DashedParser(prog="ropewalk", exit_on_error=False, allow_abbrev=False, description=DESCRIPTION)
    parser.add_subcommands(dest="command").add_subcommand("search", search, help="search factors for a target length")
    words = [_with_underscores(word) for word in (sys.argv[1:] if arguments is None else arguments)]
    try:
        options = parser.instantiate(parser.parse_args(words)).search
        config = SearchConfig(**{field.name: options[field.name] for field in fields(SearchConfig)})
        from search.job import run_search  # imports torch: seconds that the help and a typing error should not take

        _set_up_logging()
        run_search(config)
    except argparse.ArgumentError as error:
        return _report(f"{error}{_known_options(search, str(error))}")
    except (ValueError, OSError, MemoryError, StorageInternalError) as error:
        return _report(str(error) or type(error).__name__)
    except KeyboardInterrupt:
        return _report("interrupted; what was measured so far is kept in the run directory")
    return 0


def _set_up_logging() -> None:
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    for package in ("search", "workers", "results", "needles"):
        logging.getLogger(package).setLevel(logging.INFO)


def _with_underscores(word: str) -> str:
    name, equals, value = word.partition("=")
    return name.replace("-", "_").replace("__", "--", 1) + equals + value if name.startswith("--") else word


def _known_options(parser: ArgumentParser, message: str) -> str:
    if "does not accept option" not in message and "unrecognized arguments" not in message:
        return ""
    known = sorted(set(parser.get_defaults().keys()) - {"config"})
    return f"; known options: {', '.join(known)}"


def _report(message: str) -> int:
    sys.stderr.write(f"ropewalk: error: {' '.join(message.split())}\n")
    return 2
