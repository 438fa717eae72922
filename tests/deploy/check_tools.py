"""Where the checks of this folder find the programs of scripts/get_check_tools.sh."""
import pathlib
import shutil
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
TOOLS = ROOT / "build/tools"
SKIPPED = 77  # what ctest takes for a test that could not run


def skip(what: str) -> None:
    """Ends the check as skipped, which says why."""
    print(f"skipped: {what}; scripts/get_check_tools.sh gets it")
    sys.exit(SKIPPED)


def tool(name: str) -> str:
    """The path of a program: of build/tools, or else the machine's own."""
    own = TOOLS / "bin" / name
    found = str(own) if own.exists() else shutil.which(name)
    if found is None:
        skip(f"there is no {name}")
    return found


def import_yaml():
    """PyYAML: the machine's own, or else that of build/tools."""
    sys.path.append(str(TOOLS / "python"))
    try:
        import yaml
    except ImportError:
        skip("there is no PyYAML")
    return yaml
