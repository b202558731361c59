"""What a finished run, a promotion and a look at health become, and who tells of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from apprise.plugins.discord import NotifyDiscord
from click.testing import CliRunner
from runs_for_tests import fabricated_run
from webhook_server import ADDRESS, PNG, WebhookServer

from crypto_ml.gates_command import gates
from crypto_ml.notify_commands import notify
from crypto_ml.run_events import health_event, promotion_event, run_event
from crypto_ml.runs import read_record


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    project = tmp_path_factory.mktemp("project")
    (project / "settings.ini").write_text(
        "[notify]\nreport_url = https://reports.example/\npatience = 0\n"
    )
    return fabricated_run(project / "runs")


def changed(run: Path, folder: Path, **changes: object) -> Path:
    copy = folder / run.name
    copy.mkdir()
    record = json.loads((run / "run.json").read_text()) | changes
    (copy / "run.json").write_text(json.dumps(record))
    return copy


def test_a_run_is_told_with_verdict_numbers_picture_and_report(run):
    record = read_record(run)
    event = run_event(run)
    statistic = record.verdict["statistic"]
    assert event.level == (
        "warning" if record.verdict["outcome"] == "worse than chance" else "info"
    )
    assert record.verdict["outcome"] in event.title
    assert event.body == record.verdict["sentence"]
    assert event.facts["directional AUC"] == (
        f"{statistic['value']:.4f} [{statistic['low']:.4f}, {statistic['high']:.4f}]"
    )
    assert event.facts["out-of-fold rows"] == record.verdict["rows"]
    assert event.run == record.run_id
    assert event.picture.startswith(PNG)
    assert event.link == str(run / "report.html")
    assert (
        run_event(run, "https://x.example/r").link == f"https://x.example/r/{run.name}/report.html"
    )


def test_a_run_that_failed_is_a_warning_with_its_error(run, tmp_path):
    error = {"step": "candles", "kind": "CandlesError", "message": "too few bars"}
    bare = {"scores": [], "verdict": {}, "costs": {}, "luck": {}, "gates": []}
    event = run_event(changed(run, tmp_path, status="failed", error=error, **bare))
    assert event.level == "warning"
    assert event.title.endswith("failed")
    assert event.body == "candles: CandlesError: too few bars"
    assert (event.picture, event.link) == (None, "")
    assert list(event.facts) == ["market"]


def test_a_run_without_an_error_or_scores_is_told_too(run, tmp_path):
    event = run_event(changed(run, tmp_path, status="interrupted", error=None))
    assert event.body == ""
    (tmp_path / "other").mkdir()
    event = run_event(changed(run, tmp_path / "other", scores=[]))
    assert event.picture is None


def test_failed_gates_and_a_bad_verdict_are_told(run, tmp_path):
    gate = {"name": "challenger", "outcome": "fail", "value": -0.1, "limit": 0, "sentence": "worse"}
    verdict = read_record(run).verdict | {"outcome": "worse than chance", "statistic": None}
    event = run_event(changed(run, tmp_path, gates=[gate], verdict=verdict))
    assert event.level == "warning"
    assert event.facts["gates failed"] == "challenger"
    assert event.facts["directional AUC"] == "not computed"


def test_a_promotion_says_what_was_replaced_and_what_objected():
    results = [
        {"name": "leaks", "outcome": "pass", "sentence": "clean"},
        {"name": "challenger", "outcome": "fail", "sentence": "worse by 0.002"},
    ]
    plain = promotion_event("promoted", "v0004", before="v0003", gates=results[:1], run="r1")
    forced = promotion_event("promoted", "v0004", why="a test", gates=results, forced=True)
    back = promotion_event("rolled back", "v0003", report_url="https://x.example", run="r1")
    assert (plain.level, plain.facts["before"]) == ("info", "v0003")
    assert plain.facts["gates"] == "1 of 1 without objection"
    assert (forced.level, forced.title) == ("warning", "v0004 promoted by force")
    assert forced.body == "a test\nchallenger: worse by 0.002"
    assert (back.level, back.link) == ("warning", "https://x.example/r1/report.html")


def test_health_is_one_kind_while_the_same_checks_fail():
    late = [health_event({"candles": f"{n} h late", "disk": "full"}) for n in (3, 4)]
    assert late[0].key == late[1].key != health_event({"disk": "full"}).key
    assert (late[0].level, health_event({"a": "b"}, critical=False).level) == (
        "critical",
        "warning",
    )
    assert health_event({}, production="v1").level == "info"


# Commands


@pytest.fixture
def project(run, monkeypatch) -> Path:
    monkeypatch.chdir(run.parent.parent)
    monkeypatch.setenv("CRYPTO_ML_NOTIFY", ADDRESS)
    return run.parent.parent


def test_the_commands_tell_of_a_run_and_show_what_waits(run, project, monkeypatch):
    with WebhookServer() as server:
        monkeypatch.setattr(NotifyDiscord, "notify_url", server.url)
        ask = CliRunner()
        done = ask.invoke(notify, ["run", run.name])
        assert (done.exit_code, done.output.split(": ")[-1]) == (0, "sent\n"), done.output
        (embed,) = server.embeds
        assert embed["url"] == f"https://reports.example/{run.name}/report.html"
        assert server.requests[0].files["summary.png"].startswith(PNG)
        for level in ("info", "critical", "info"):
            assert ask.invoke(notify, ["test", level]).exit_code == 0
        assert [embed["color"] for embed in server.embeds[1:]] == [0x0072B2, 0xD55E00, 0x0072B2]
        assert ask.invoke(notify, ["status"]).exit_code == 0
        server.misbehave("400")
        refused = ask.invoke(notify, ["test"])
        assert refused.exit_code == 1
        assert "1 refused" in refused.output
        server.misbehave("404", times=9)
        flushed = ask.invoke(notify, ["flush"])
        assert (flushed.exit_code, "1 queued, the oldest since" in flushed.output) == (1, True)
        server.faults.clear()
        assert ask.invoke(notify, ["flush"]).exit_code == 0
        assert ask.invoke(notify, ["status"]).output.startswith("info: well")


def test_without_an_address_a_run_is_told_to_nobody_and_that_is_fine(run, project, monkeypatch):
    monkeypatch.delenv("CRYPTO_ML_NOTIFY")
    done = CliRunner().invoke(notify, ["run", run.name])
    assert done.exit_code == 0
    assert "CRYPTO_ML_NOTIFY_INFO" in done.output
    assert CliRunner().invoke(notify, ["test"]).exit_code == 1


def test_gates_are_asked_and_answer_with_an_exit_code(run, project):
    told = CliRunner().invoke(gates, [run.name])
    listed = json.loads(CliRunner().invoke(gates, [run.name, "--json"]).output)
    failed = [gate["name"] for gate in listed if gate["outcome"] == "fail"]
    assert told.exit_code == bool(failed)
    assert len(told.output.splitlines()) == len(listed) > 5
    assert not (project / "models" / "production").exists()
