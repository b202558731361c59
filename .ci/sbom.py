"""Tell what requirements.lock holds: a CycloneDX bill of materials, or what running needs of it.

python .ci/sbom.py                          every package, those that only development needs marked
python .ci/sbom.py --requirements NAME ...  the lock of what running needs, and of NAMEs
"""

from __future__ import annotations

import argparse
import ast
import json
import re
import sys
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROJECT = "crypto-ml (pyproject.toml)"  # who asks for a dependency or an extra, and no group


@dataclass(frozen=True)
class Package:
    """One entry of the lock: a version, the hashes of its files, and who asks for it."""

    name: str
    version: str
    hashes: tuple[str, ...]
    parents: tuple[str, ...]
    text: str

    @property
    def purl(self) -> str:
        """The package's name among all packages of the world."""
        return f"pkg:pypi/{self.name}@{self.version}"


def read_lock(text: str) -> list[Package]:
    """Read a lock that `uv pip compile --generate-hashes` wrote, with its comments."""
    packages = []
    for block in re.split(r"^(?=[A-Za-z0-9])", text, flags=re.MULTILINE)[1:]:
        head = re.match(r"([\w.-]+)==(\S+)", block)
        if not head:
            raise SystemExit(f"requirements.lock: no pinned version in {block.splitlines()[0]!r}")
        via = re.findall(r"^ +#(?: via)? +(.+)$", block, re.MULTILINE)
        parents = tuple(re.sub(r"\[.*\]$", "", parent.strip()) for parent in via)
        hashes = tuple(re.findall(r"--hash=sha256:([0-9a-f]{64})", block))
        packages.append(Package(head[1], head[2], hashes, parents, block))
    return packages


def needed(packages: Iterable[Package], more: Iterable[str] = ()) -> set[str]:
    """Name the packages that running needs, with every extra, and those that they need."""
    packages = list(packages)
    found = {package.name for package in packages if PROJECT in package.parents} | set(more)
    size = 0
    while size < len(found):
        size = len(found)
        found |= {package.name for package in packages if found.intersection(package.parents)}
    return found


def bill_of_materials(text: str, version: str) -> dict[str, object]:
    """Return a CycloneDX 1.5 document; the same lock gives the same document."""
    packages = read_lock(text)
    running = needed(packages)
    this = f"pkg:pypi/crypto-ml@{version}"
    asks: dict[str, list[str]] = {}
    for package in packages:
        for parent in package.parents:
            asks.setdefault(parent, []).append(package.purl)
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, this + text)}",
        "version": 1,
        "metadata": {
            "component": {
                "type": "application",
                "bom-ref": this,
                "name": "crypto_ml",
                "version": version,
                "purl": this,
            }
        },
        "components": [
            {
                "type": "library",
                "bom-ref": package.purl,
                "name": package.name,
                "version": package.version,
                "purl": package.purl,
                "scope": "required" if package.name in running else "excluded",
                "hashes": [{"alg": "SHA-256", "content": value} for value in package.hashes],
            }
            for package in packages
        ],
        "dependencies": [
            {"ref": this, "dependsOn": sorted(asks.get(PROJECT, []))},
            *(
                {"ref": package.purl, "dependsOn": sorted(asks.get(package.name, []))}
                for package in packages
            ),
        ],
    }


def project_version(root: Path) -> str:
    """Read the version without importing the package."""
    tree = ast.parse((root / "crypto_ml" / "__init__.py").read_text())
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__version__":
            return str(ast.literal_eval(node.value))
    raise SystemExit("crypto_ml/__init__.py has no __version__")


def main(arguments: list[str]) -> None:
    """Print what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requirements", nargs="*", metavar="NAME")
    asked = parser.parse_args(arguments).requirements
    text = (ROOT / "requirements.lock").read_text()
    if asked is None:
        print(json.dumps(bill_of_materials(text, project_version(ROOT)), indent=1))
        return
    packages = read_lock(text)
    if unknown := set(asked) - {package.name for package in packages}:
        raise SystemExit(f"requirements.lock does not hold {', '.join(sorted(unknown))}")
    wanted = needed(packages, asked)
    print("".join(package.text for package in packages if package.name in wanted), end="")


if __name__ == "__main__":
    main(sys.argv[1:])
