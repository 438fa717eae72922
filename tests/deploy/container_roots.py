"""Clean roots of the host's distribution, and the mounts that a program in one needs.

What mounts here belongs in a mount namespace of its own (scripts/check_container.sh makes it): then
nothing stays mounted, however the program ends.
"""
import contextlib
import os
import pathlib
import re
import shutil
import subprocess

SOURCES = pathlib.Path("/etc/apt")
# What the -slim images of Debian leave out, by their own list.
SLIM = """path-exclude /usr/share/doc/*
path-include /usr/share/doc/*/copyright
path-exclude /usr/share/groff/*
path-exclude /usr/share/info/*
path-exclude /usr/share/lintian/*
path-exclude /usr/share/linda/*
path-exclude /usr/share/locale/*
path-include /usr/share/locale/locale.alias
path-exclude /usr/share/man/*
"""


def run(*command: str | pathlib.Path, **options) -> subprocess.CompletedProcess:
    return subprocess.run([str(word) for word in command], check=True, **options)


def release() -> tuple[str, str]:
    """The distribution's id and codename, such as debian and bookworm."""
    text = pathlib.Path("/etc/os-release").read_text()
    values = dict(re.findall(r'^(\w+)="?([^"\n]*)"?$', text, re.MULTILINE))
    return values["ID"], values["VERSION_CODENAME"]


def apt_sources() -> list[pathlib.Path]:
    """The host's sources of its own distribution, without third parties'."""
    files = [SOURCES / "sources.list", *sorted((SOURCES / "sources.list.d").glob("*.sources")),
             *sorted((SOURCES / "sources.list.d").glob("*.list"))]
    word = re.compile(rf"^[^#\n]*\b{release()[1]}\b", re.MULTILINE)
    kinds = re.compile(r"/(debian|debian-security|ubuntu)/?(\s|$)", re.MULTILINE)
    found = [f for f in files if f.exists() and word.search(f.read_text()) and kinds.search(f.read_text())]
    if not found:
        raise SystemExit(f"no apt source of the host has {release()[1]}")
    return found


def mirror() -> str:
    """Where the host gets its distribution from: the first address of its sources."""
    for file in apt_sources():
        found = re.search(r"^(?:URIs:\s*|deb\s+(?:\[[^\]]*\]\s+)?)(\S+)", file.read_text(), re.MULTILINE)
        if found:
            return found[1]
    raise SystemExit("the host's apt sources name no address")


def give_sources(root: pathlib.Path) -> None:
    """Lets apt in the root fetch from where the host's does, by the host's rules."""
    (root / "etc/apt/sources.list").unlink(missing_ok=True)
    for file in apt_sources():
        shutil.copy(file, root / file.relative_to("/"))
    dump = run("apt-config", "dump", "Acquire", capture_output=True, text=True).stdout
    wanted = re.findall(r"^Acquire::(?:Check-|https?::|Retries|Languages).*$", dump, re.MULTILINE)
    (root / "etc/apt/apt.conf.d/90host").write_text("\n".join(wanted) + "\n")


def make_base(archive: pathlib.Path, work: pathlib.Path) -> None:
    """Debootstraps a minimal root, takes from it what slim images lack, and packs it."""
    root = work / "debootstrap"
    run("debootstrap", "--variant=minbase", release()[1], root, mirror())
    for folder in ("man", "info", "groff", "lintian", "linda"):
        shutil.rmtree(root / "usr/share" / folder, ignore_errors=True)
    for locale in (root / "usr/share/locale").iterdir():
        if locale.name != "locale.alias":
            shutil.rmtree(locale)
    for document in sorted((root / "usr/share/doc").rglob("*"), reverse=True):
        if document.is_dir() and not document.is_symlink():
            with contextlib.suppress(OSError):  # not empty
                document.rmdir()
        elif document.name != "copyright" and not document.is_symlink():
            document.unlink()
    (root / "etc/dpkg/dpkg.cfg.d/slim").write_text(SLIM)
    for pattern in ("var/cache/apt/archives/*.deb", "var/lib/apt/lists/*_*", "var/log/*.log"):
        for file in root.glob(pattern):
            file.unlink()
    give_sources(root)
    archive.parent.mkdir(parents=True, exist_ok=True)
    run("tar", "--create", "--file", archive, "--directory", root, "--numeric-owner", ".")
    shutil.rmtree(root)


def unpack(archive: pathlib.Path, root: pathlib.Path) -> None:
    root.mkdir(parents=True)
    run("tar", "--extract", "--file", archive, "--directory", root, "--numeric-owner",
        "--preserve-permissions")


def bind(source: pathlib.Path, target: pathlib.Path, read_only: bool) -> None:
    """Shows source at target, a file or a folder; sub-mounts of source are not shown."""
    run("mount", "--bind", source, target)
    if read_only:
        run("mount", "-o", "remount,bind,ro", target)


@contextlib.contextmanager
def mounted(root: pathlib.Path, folders: dict[pathlib.Path, str], network: bool):
    """A root with /proc, /dev, the host's name resolution and folders, {source: path in the root}.

    A source whose path ends in ":rw" may be written to.
    """
    targets: list[pathlib.Path] = []

    def show(source: pathlib.Path, path: str, read_only: bool) -> None:
        target = root / path.lstrip("/")
        if source.is_dir():
            target.mkdir(parents=True, exist_ok=True)
        elif not target.exists():
            target.touch()
        bind(source, target, read_only)
        targets.append(target)

    try:
        (root / "proc").mkdir(exist_ok=True)
        run("mount", "-t", "proc", "proc", root / "proc")
        targets.append(root / "proc")
        show(pathlib.Path("/dev"), "dev", read_only=False)
        for name in ("etc/resolv.conf", "etc/hosts") if network else ():
            show(pathlib.Path("/" + name), name, read_only=True)
        for source, path in folders.items():
            show(source, path.removesuffix(":rw"), read_only=not path.endswith(":rw"))
        yield
    finally:
        for target in reversed(targets):
            run("umount", "--lazy", target)


def size_of(root: pathlib.Path) -> int:
    """Bytes of all files below a folder, each once."""
    seen: dict[tuple[int, int], int] = {}
    for folder, _, names in os.walk(root):
        for name in names:
            status = os.lstat(os.path.join(folder, name))
            seen[status.st_dev, status.st_ino] = status.st_size
    return sum(seen.values())
