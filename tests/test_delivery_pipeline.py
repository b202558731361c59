"""Workflows, container file and bill of materials: what can be known of them beforehand."""

from __future__ import annotations

import fnmatch
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import pytest
import yaml
from sbom import bill_of_materials, needed, read_lock

ROOT = Path(__file__).resolve().parent.parent
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
MAKEFILE = (ROOT / "Makefile").read_text()
TARGETS = re.findall(r"^([a-z]+):.*## ", MAKEFILE, re.MULTILINE)
PIN = re.compile(r"uses: [\w.-]+/[\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+$")
WRITES = {
    ("train", "id-token"),
    ("promote", "id-token"),
    ("attest", "id-token"),
    ("attest", "attestations"),
    ("publish", "contents"),
}


def load(path: Path) -> dict[Any, Any]:
    return yaml.safe_load(path.read_text())


def jobs() -> list[Any]:
    return [
        pytest.param(name, job, id=f"{path.stem}-{name}")
        for path in WORKFLOWS
        for name, job in load(path)["jobs"].items()
    ]


# Workflows


def test_zizmor_finds_nothing():
    command = [Path(sys.executable).parent / "zizmor", "--offline", "--no-progress", "--quiet"]
    done = subprocess.run(
        [*command, ROOT / ".github" / "workflows"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_there_are_the_three_workflows():
    assert [path.stem for path in WORKFLOWS] == ["ci", "release", "train"]
    for path in WORKFLOWS:
        assert load(path)["permissions"] == {"contents": "read"}


def test_training_is_scheduled_weekly_monthly_and_by_hand():
    text = load(ROOT / ".github" / "workflows" / "train.yml")
    asked = text[True]  # YAML reads `on` so
    week, month = (entry["cron"].split() for entry in asked["schedule"])
    assert week[2:4] == ["*", "*"] and week[4] != "*"
    assert month[2] == "1" and month[3:] == ["*", "*"]
    assert set(asked["workflow_dispatch"]["inputs"]) == {"source", "days"}
    assert " ".join(week) in text["env"]["DAYS"]  # the weekly run is told by its line


def test_actions_are_pinned_and_one_action_has_one_pin():
    pins: dict[str, set[str]] = {}
    for path in WORKFLOWS:
        for line in path.read_text().splitlines():
            if "uses:" in line:
                assert PIN.search(line), line
                action, _, pin = line.partition("uses: ")[2].partition("@")
                pins.setdefault(action, set()).add(pin)
    assert all(len(found) == 1 for found in pins.values()), pins


@pytest.mark.parametrize(("name", "job"), jobs())
def test_a_shell_step_is_one_target_of_the_makefile(name, job):
    for step in job["steps"]:
        if "run" in step:
            make, target = shlex.split(step["run"])
            assert (make, target in TARGETS) == ("make", True), step["run"]
            assert "${{" not in step["run"]


@pytest.mark.parametrize(("name", "job"), jobs())
def test_a_job_may_do_little_and_not_for_long(name, job):
    assert 0 < job["timeout-minutes"] <= 120
    permissions = job.get("permissions", {})
    assert {(name, what) for what, may in permissions.items() if may == "write"} == {
        pair for pair in WRITES if pair[0] == name
    }
    for step in job["steps"]:
        if step.get("uses", "").startswith("actions/checkout@"):
            assert step["with"]["persist-credentials"] is False


def test_production_and_releases_wait_for_a_reviewer():
    train = load(ROOT / ".github" / "workflows" / "train.yml")["jobs"]
    assert train["promote"]["environment"] == "production"
    assert train["promote"]["needs"] == "train"
    assert "gates" in train["promote"]["if"]
    release = load(ROOT / ".github" / "workflows" / "release.yml")["jobs"]
    assert release["publish"]["environment"] == "release"
    assert (release["attest"]["needs"], release["publish"]["needs"]) == ("build", "attest")


def make(target: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a target in the project with stand-ins for programs that are not here."""
    return subprocess.run(
        ["make", "-s", "-o", ".venv/.synced", target, f"BIN={folder}"],
        cwd=ROOT,
        env=os.environ | {"PATH": f"{folder}:{os.environ['PATH']}"} | environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    ("target", "environment", "expected"),
    [
        (
            "run",
            {"RUN": "runs/ci 1", "SOURCE": "sim:clear; id", "DAYS": "30"},
            [
                "papermill",
                "nbs/train.ipynb",
                ANY,
                "-k",
                "python3",
                "-p",
                "run_folder",
                "runs/ci 1",
                "-p",
                "source",
                "sim:clear; id",
                "-p",
                "days",
                "30",
            ],
        ),
        ("gates", {"RUN": "runs/ci 1"}, ["crypto-ml", "gates", "runs/ci 1"]),
        ("promote", {"RUN": "runs/ci 1"}, ["crypto-ml", "promote", "runs/ci 1"]),
        ("announce", {"RUN": "runs/ci 1"}, ["crypto-ml", "notify", "run", "runs/ci 1"]),
        (
            "pull",
            {"MODELS_URL": "gs://bucket/models"},
            ["gcloud", "storage", "rsync", "--recursive", "gs://bucket/models", "models"],
        ),
        (
            "push",
            {"MODELS_URL": "gs://bucket/models"},
            ["gcloud", "storage", "rsync", "--recursive", "models", "gs://bucket/models"],
        ),
    ],
)
def test_a_target_runs_its_command_whatever_is_in_its_variables(
    target, environment, expected, tmp_path
):
    for name in ("papermill", "crypto-ml", "gcloud"):
        program = tmp_path / name
        program.write_text(
            '#!/bin/sh\nfor word in "$(basename "$0")" "$@"; do echo "$word"; done\n'
        )
        program.chmod(0o755)
    done = make(target, tmp_path, **environment)
    said = done.stdout.splitlines()
    assert done.returncode == 0, done.stderr
    assert [
        word if want is not ANY else ANY for word, want in zip(said, expected, strict=True)
    ] == (expected)


def test_a_release_holds_all_that_was_built(tmp_path):
    gh = tmp_path / "gh"
    gh.write_text('#!/bin/sh\necho "$@"\n')
    gh.chmod(0o755)
    done = make("release", tmp_path, TAG="v1.2.3")
    assert re.match(r"release create v1\.2\.3 dist/\S* .*--verify-tag", done.stdout), done


# Container


def instructions() -> list[tuple[str, str]]:
    text = re.sub(r"^\s*#.*\n", "", (ROOT / "Containerfile").read_text(), flags=re.MULTILINE)
    lines = re.sub(r"\\\n\s*", "", text).splitlines()
    return [(line.split()[0], line.split(maxsplit=1)[1]) for line in lines if line.strip()]


def test_the_image_runs_crypto_ml_as_nobody_in_particular():
    last: dict[str, str] = dict(instructions())
    user = last["USER"]
    assert re.fullmatch(r"[1-9]\d{3,}:[1-9]\d{3,}", user), user
    names = [name for name, _ in instructions()]
    assert names.index("USER") > max(at for at, name in enumerate(names) if name == "RUN")
    assert json.loads(last["ENTRYPOINT"]) == ["crypto-ml"]
    assert json.loads(last["HEALTHCHECK"].partition("CMD ")[2])[0] == "crypto-ml"


def test_only_the_volumes_are_written():
    last = dict(instructions())
    assert json.loads(last["VOLUME"]) == ["/app/runs", "/app/models"]
    owned = [text for name, text in instructions() if name == "RUN" and "-o 10001" in text]
    assert owned == ["install -d -o 10001 -g 10001 runs models"]
    assert not any("--chown" in text for name, text in instructions() if name == "COPY")


def test_the_base_is_a_python_that_ci_tests():
    bases = {text.split()[0] for name, text in instructions() if name == "FROM"}
    assert len(bases) == 1
    version = re.fullmatch(r"python:(3\.\d+)-slim-bookworm", bases.pop())
    assert version
    matrix = load(ROOT / ".github" / "workflows" / "ci.yml")["jobs"]["test"]["strategy"]["matrix"]
    assert version[1] in matrix["python"]


def test_everything_is_installed_against_its_hash():
    installs = [
        part
        for name, text in instructions()
        if name == "RUN"
        for part in text.split("&&")
        if "pip install" in part
    ]
    assert len(installs) == 2
    assert "--require-hashes" in installs[0]
    assert "--no-deps" in installs[1] and "--no-build-isolation" in installs[1]


def test_what_is_copied_exists_and_is_sent_to_the_build():
    rules = [
        line
        for line in (ROOT / ".dockerignore").read_text().splitlines()
        if line and not line.startswith("#")
    ]
    assert rules[0] == "*"
    admitted = [rule[1:] for rule in rules if rule.startswith("!")]
    copied = {
        source
        for name, text in instructions()
        if name == "COPY" and "--from" not in text
        for source in text.split()[:-1]
    }
    assert copied == set(admitted)
    assert all((ROOT / path).exists() for path in admitted)


def test_no_secret_and_no_data_gets_into_the_image():
    text = (ROOT / "Containerfile").read_text()
    for word in ("ARG", "SECRET", "TOKEN", "PASSWORD", "ADD ", "curl", "wget", "sudo"):
        assert word not in text, word
    admitted = re.findall(r"^!(.*)", (ROOT / ".dockerignore").read_text(), re.MULTILINE)
    for private in ("runs", "models", "keys", ".git", ".venv", "gha-creds-1.json", ".env"):
        assert not any(fnmatch.fnmatch(private, rule) for rule in admitted), private


def test_credentials_of_the_cloud_are_kept_out_of_git():
    name = "gha-creds-0123456789abcdef.json"  # as google-github-actions/auth writes it
    done = subprocess.run(["git", "check-ignore", "-q", name], cwd=ROOT, check=False)
    assert done.returncode == 0


# Bill of materials

LOCK = """# comment
certifi==2026.1.1 \\
    --hash=sha256:{a}
    # via requests
numpy==2.0 ; python_full_version < '3.12' \\
    --hash=sha256:{a} \\
    --hash=sha256:{b}
    # via
    #   crypto-ml (pyproject.toml)
    #   pandas
numpy==2.4 ; python_full_version >= '3.12' \\
    --hash=sha256:{b}
    # via crypto-ml (pyproject.toml)
pytest==8.3 \\
    --hash=sha256:{a}
    # via crypto-ml (pyproject.toml:dev)
requests==2.32 \\
    --hash=sha256:{b}
    # via
    #   crypto-ml (pyproject.toml)
    #   pytest[all]
""".format(a="a" * 64, b="b" * 64)


def test_the_bill_says_what_running_needs_and_what_only_development_does():
    bill = bill_of_materials(LOCK, "1.2.3")
    parts = {part["purl"]: part for part in bill["components"]}
    assert {purl: part["scope"] for purl, part in parts.items()} == {
        "pkg:pypi/certifi@2026.1.1": "required",
        "pkg:pypi/numpy@2.0": "required",
        "pkg:pypi/numpy@2.4": "required",
        "pkg:pypi/pytest@8.3": "excluded",
        "pkg:pypi/requests@2.32": "required",
    }
    assert [item["content"][0] for item in parts["pkg:pypi/numpy@2.0"]["hashes"]] == ["a", "b"]
    graph = {item["ref"]: item["dependsOn"] for item in bill["dependencies"]}
    assert graph["pkg:pypi/pytest@8.3"] == ["pkg:pypi/requests@2.32"]
    assert graph["pkg:pypi/requests@2.32"] == ["pkg:pypi/certifi@2026.1.1"]
    assert bill == bill_of_materials(LOCK, "1.2.3")
    assert bill["serialNumber"] != bill_of_materials(LOCK, "1.2.4")["serialNumber"]


def test_the_bill_of_this_project_lists_its_whole_lock():
    text = (ROOT / "requirements.lock").read_text()
    bill = bill_of_materials(text, "1.0")
    listed = {(part["name"], part["version"]) for part in bill["components"]}
    assert listed == set(re.findall(r"^([\w.-]+)==([^\s;]+)", text, re.MULTILINE))
    assert all(part["hashes"] for part in bill["components"])
    known = {part["bom-ref"] for part in bill["components"]}
    assert all(set(item["dependsOn"]) <= known for item in bill["dependencies"])


def test_running_needs_the_libraries_but_no_tool():
    running = needed(read_lock((ROOT / "requirements.lock").read_text()))
    assert {"pandas", "lightgbm", "papermill", "apprise", "google-cloud-secret-manager"} <= running
    assert not running & {"pytest", "ruff", "mypy", "jupyterlab", "sphinx", "zizmor", "uv"}


def test_a_lock_without_a_pin_is_refused():
    with pytest.raises(SystemExit, match="no pinned version"):
        read_lock("numpy>=2\n")
