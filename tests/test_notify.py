"""Notifications: Apprise really sends, to a server that speaks the dialect of Discord."""

from __future__ import annotations

import io
import json
import logging
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from apprise.plugins.discord import NotifyDiscord
from hypothesis import given
from hypothesis import strategies as st
from small_bundles import in_child, killed_before
from webhook_server import ADDRESS, PNG, TOKEN, WebhookServer

from crypto_ml.delivery import Post
from crypto_ml.events import Event, Message, NotifyError, compose, make_message, read_message
from crypto_ml.notify import Notifier, open_notifier
from crypto_ml.notify_settings import NotifySettings
from crypto_ml.outbox import ChannelState, StatefulOutbox, plan
from crypto_ml.secrets import SecretError
from crypto_ml.services import apprise_library, discord_answer, discord_embed, send_message
from crypto_ml.settings import load_settings

NOON = 1_777_809_600.0


class Clock:
    """A clock that only sleeping moves."""

    def __init__(self) -> None:
        self.now, self.naps = NOON, []

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.naps.append(round(seconds, 3))
        self.now += seconds


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[WebhookServer]:
    with WebhookServer() as running:
        monkeypatch.setattr(NotifyDiscord, "notify_url", running.url)
        yield running


@pytest.fixture
def clock() -> Clock:
    return Clock()


def notifier(folder: Path, clock: Clock, say=None, addresses=None, **settings) -> Notifier:
    found = {"NOTIFY": ADDRESS} if addresses is None else addresses
    find = found if callable(found) else found.get
    say = say if say is not None else []
    outbox = StatefulOutbox(folder / "outbox")
    return Notifier(Post(outbox, NotifySettings(**settings), find, say.append, clock, clock.sleep))


def titles(server: WebhookServer) -> list[str]:
    return [embed["title"] for embed in server.embeds]


# What arrives


def test_an_event_arrives_as_an_embed_with_the_picture_inside(tmp_path, server, clock):
    picture = tmp_path / "figure.png"
    picture.write_bytes(PNG + b"figure")
    event = Event(
        "warning",
        "An edge",
        "Directional AUC 0.53.",
        {"rows": 8_000, "AUC": 0.53123, "gate": True},
        run="20260503-1",
        picture=picture,
        link="https://reports.example/20260503-1/report.html",
    )
    assert notifier(tmp_path, clock).send(event) == "sent"
    (request,) = server.requests
    (embed,) = request.payload["embeds"]
    assert embed["title"] == "An edge"
    assert embed["url"] == event.link
    assert embed["footer"] == {"text": "run 20260503-1"}
    assert [(item["name"], item["value"]) for item in embed["fields"]] == [
        ("rows", "8,000"),
        ("AUC", "0.5312"),
        ("gate", "True"),
    ]
    assert embed["image"] == {"url": "attachment://summary.png"}
    assert request.files == {"summary.png": PNG + b"figure"}
    assert request.payload["allowed_mentions"] == {"parse": []}


def test_the_largest_event_is_still_one_that_discord_takes(tmp_path, server, clock):
    facts = {f"{n} " + "name" * 99: "value" * 999 for n in range(40)} | {"empty": ""}
    event = Event("info", "t" * 999, "body " * 9999, facts, run="r" * 999, link="runs/" + "x" * 99)
    assert notifier(tmp_path, clock).send(event) == "sent"


def test_pings_and_a_name_come_from_the_address_only(tmp_path, server, clock):
    address = ADDRESS.replace("discord://", "discord://crypto@") + "?ping=%3C%40123%3E&thread=7"
    notifier(tmp_path, clock, addresses={"NOTIFY": address}).send(Event("info", "@everyone"))
    (request,) = server.requests
    assert request.payload["username"] == "crypto"
    assert "<@123>" in request.payload["content"]
    assert request.payload["allowed_mentions"] == {"parse": [], "users": ["123"], "roles": []}
    assert "thread_id=7" in request.path


def test_a_picture_that_is_gone_does_not_stop_the_message(tmp_path, server, clock):
    event = Event("info", "A run", picture=tmp_path / "absent.png")
    assert notifier(tmp_path, clock).send(event) == "sent"
    assert "No such file" in server.embeds[0]["description"]


def test_other_services_get_text_and_picture_through_apprise(server):
    message = make_message(
        Event("critical", "Down", "It is.", {"version": "v3"}, picture=PNG, link="runs/1"),
        "critical",
        NOON,
        "1",
    )
    answer = send_message(message, f"json://{server.root}/hook")
    sent = server.requests[0].payload
    assert not answer.ok
    assert answer.why == "the json service did not take it"  # 404: the server speaks Discord only
    assert (sent["title"], sent["type"]) == ("Down", "failure")
    assert sent["message"] == "It is.\nversion: v3\nruns/1"
    assert sent["attachments"][0]["mimetype"] == "image/png"


def test_each_level_goes_to_its_channels_and_a_channel_may_have_its_own_address(
    tmp_path, server, clock
):
    own = {"NOTIFY_OPS": ADDRESS + "?thread=1", "NOTIFY": ADDRESS + "?thread=2"}
    routed = notifier(tmp_path, clock, addresses=own, info=(), critical=("ops", "warning"))
    assert [routed.send(Event(level, level)) for level in ("info", "warning", "critical")] == [
        "silent",
        "sent",
        "sent",
    ]
    threads = [
        (request.path[-1], request.payload["embeds"][0]["title"]) for request in server.requests
    ]
    assert threads == [("2", "warning"), ("1", "critical"), ("2", "critical")]


# When the service is unwell


def test_retry_after_is_honoured(tmp_path, server, clock):
    server.misbehave("429")
    assert notifier(tmp_path, clock).send(Event("info", "A run")) == "sent"
    assert clock.naps == [0.65]
    assert [request.status for request in server.requests] == [429, 204]


def test_a_long_retry_after_is_waited_for_in_the_outbox(tmp_path, server, clock):
    server.retry_after = 30.0
    server.misbehave("429")
    telling = notifier(tmp_path, clock)
    assert telling.send(Event("info", "one")) == "queued"
    clock.now += 29
    assert telling.send(Event("info", "two")) == "sent"  # a second is within the patience
    assert titles(server) == ["one", "two"]
    assert clock.now == NOON + 30


def test_a_429_without_a_body_is_read_from_its_header(tmp_path, server, clock):
    server.misbehave("429 without a body")
    notifier(tmp_path, clock).send(Event("info", "A run"))
    assert clock.naps == [1.0]


def test_the_last_allowed_message_says_how_long_to_pause(tmp_path, server, clock):
    server.misbehave("spent")
    telling = notifier(tmp_path, clock)
    assert [telling.send(Event("info", title)) for title in "ab"] == ["sent", "sent"]
    assert clock.naps == [0.65]


@pytest.mark.parametrize("fault", ["500", "drop", "slow"])
def test_a_broken_answer_is_tried_again_with_longer_and_longer_pauses(
    fault, tmp_path, server, clock, monkeypatch
):
    monkeypatch.setattr(NotifyDiscord, "socket_read_timeout", 0.2)
    server.misbehave(fault, times=3)
    said = []
    telling = notifier(tmp_path, clock, said)
    assert telling.send(Event("info", "A run")) == "queued"  # after 0, 1 and 3 seconds
    assert clock.naps == [1.0, 2.0]
    status = telling.status()
    assert (status.queued, status.failed, status.since) == (1, 0, NOON)
    assert status.channels[0].attempts == 3
    assert len(said) == 1
    clock.now += 4
    assert telling.flush().queued == 0
    assert telling.status().since is None
    assert titles(server)[-1] == "A run"


def test_a_deleted_webhook_is_visible_and_nothing_is_lost(tmp_path, server, clock):
    gone = {"NOTIFY": ADDRESS.replace("JHZ7", "XXXX")}
    status = notifier(tmp_path, clock, addresses=gone).send(Event("info", "A run"))
    assert status == "queued"
    telling = notifier(tmp_path, clock)
    assert "webhook deleted" in telling.status().problems[0]
    assert telling.flush(force=True).queued == 0
    assert titles(server) == ["A run"]


def test_a_refused_message_is_set_aside_and_blocks_no_other(tmp_path, server, clock):
    server.misbehave("400")
    said = []
    telling = notifier(tmp_path, clock, said)
    assert telling.send(Event("info", "bad")) == "failed"
    assert telling.send(Event("info", "good")) == "sent"
    assert telling.status().failed == 1
    assert "refused" in telling.status().problems[0]
    assert said == ["'bad' was refused by info: Discord refused the message (400)"]
    assert telling.flush(force=True).failed == 0
    assert titles(server) == ["good", "bad"]


def test_no_network_costs_the_work_only_its_patience(tmp_path, clock, monkeypatch):
    monkeypatch.setattr(NotifyDiscord, "notify_url", "http://127.0.0.1:9/api/webhooks")
    telling = notifier(tmp_path, clock)
    assert [telling.send(Event("info", title)) for title in "ab"] == ["queued", "queued"]
    assert sum(clock.naps) <= 2 * 5
    with WebhookServer() as server:  # the network is back, after a restart
        monkeypatch.setattr(NotifyDiscord, "notify_url", server.url)
        clock.now += 900
        again = notifier(tmp_path, clock)
        assert again.flush().queued == 0
        assert titles(server) == ["a", "b"]


def test_without_patience_everything_is_tried_once(tmp_path, server, clock):
    telling = notifier(tmp_path, clock, patience=0)
    ticking = Post(
        telling.post.outbox,
        telling.post.settings,
        telling.post.find,
        clock=lambda: clock.sleep(0.01) or clock(),
        sleep=clock.sleep,
    )
    assert Notifier(ticking).send(Event("info", "one")) == "sent"
    clock.naps.clear()
    server.misbehave("500")
    assert telling.send(Event("info", "two")) == "queued"
    assert clock.naps == []


def test_a_channel_that_rests_is_left_alone_while_others_are_served(tmp_path, server, clock):
    server.retry_after = 30.0
    server.misbehave("429")
    telling = notifier(tmp_path, clock)
    assert telling.send(Event("critical", "one")) == "queued"
    assert telling.send(Event("info", "two")) == "sent"
    assert len(server.requests) == 2


# How much arrives


def test_the_same_is_said_once_and_then_counted(tmp_path, server, clock):
    telling = notifier(tmp_path, clock)
    answers = []
    for minute in range(14):
        answers.append(telling.send(Event("warning", "Candles are late", f"by {minute} min")))
        clock.now += 60
    assert answers == ["sent"] + ["queued"] * 13
    clock.now += 60 * 60
    telling.flush()
    assert [embed["description"].split("\n")[0] for embed in server.embeds] == [
        "by 0 min",
        "by 13 min",
    ]
    assert "(12 more like this since" in server.embeds[1]["description"]
    assert telling.status().queued == 0


def test_a_storm_of_kinds_becomes_a_digest(tmp_path, server, clock):
    telling = notifier(tmp_path, clock, per_hour=3)
    for n in range(3):
        assert telling.send(Event("info", f"event {n}")) == "sent"
    for n in range(3, 30):
        telling.send(Event("critical" if n == 17 else "info", f"event {n}"))
    assert titles(server)[3:] == ["event 17"]  # another channel
    clock.now += 3601
    telling.flush()
    assert titles(server)[4:] == ["event 3", "event 4", "24 messages"]
    assert "and 14 other kinds" in server.embeds[-1]["description"]
    assert telling.status().queued == 0


@given(
    st.lists(
        st.tuples(st.sampled_from("abcdef"), st.sampled_from(["info", "critical"])), max_size=30
    ),
    st.integers(1, 6),
    st.integers(0, 6),
    st.sets(st.sampled_from("abcdef")),
)
def test_a_plan_sends_everything_that_may_be_said_once_and_no_more(events, per_hour, sent, said):
    messages = [
        make_message(Event(level, title, key=title), "ops", NOON + n, f"{n:03}")
        for n, (title, level) in enumerate(events)
    ]
    keys = {message.title: message.key for message in messages}
    state = ChannelState(
        sent=[NOON - 10.0] * sent, said={keys[title]: NOON for title in said if title in keys}
    )
    now = NOON + 30
    batches = plan(messages, state, now, per_hour=per_hour, repeat_after=3600)
    planned = [message.id for batch in batches for message in batch]
    may = [message.id for message in messages if message.title not in said]
    assert len(batches) <= max(per_hour - sent, 0)
    assert sorted(planned) == (sorted(may) if per_hour > sent else [])
    for batch in batches:
        assert compose(batch).more == len(batch) - 1


# On disk


def send_three(folder: Path) -> None:
    telling = notifier(folder, Clock())
    for title in ("one", "two", "three"):
        assert telling.send(Event("info", title, picture=PNG)) in ("sent", "queued")
        (folder / f"{title} returned").touch()


def test_killed_at_any_step_every_event_that_was_taken_arrives(tmp_path, server, clock):
    outcomes = []
    for step in range(0, 400, 5):
        folder = tmp_path / str(step)
        folder.mkdir()
        server.requests.clear()
        killed = killed_before(step, folder / "outbox", lambda folder=folder: send_three(folder))
        taken = [
            title for title in ("one", "two", "three") if (folder / f"{title} returned").exists()
        ]
        status = notifier(folder, clock).flush(force=True)
        assert (status.queued, status.failed) == (0, 0)
        arrived = titles(server)
        assert set(taken) <= set(arrived)
        assert len(arrived) <= len(set(arrived)) + 1  # only the one on the wire can come twice
        outcomes.append(len(taken))
        if not killed:
            break
    assert not killed
    assert set(outcomes) == {0, 1, 2, 3}


def test_a_message_is_on_disk_before_it_has_its_name(tmp_path, clock, monkeypatch):
    outbox, flush, seen = StatefulOutbox(tmp_path), os.fsync, []

    def watched(handle: int) -> None:
        seen.append(len(list(outbox.queue.glob("*.json"))))
        flush(handle)

    monkeypatch.setattr(os, "fsync", watched)
    outbox.add(make_message(Event("info", "one"), "info", NOON, "1"))
    assert seen == [0, 1]  # the file, then the list of names


def test_many_processes_share_one_outbox(tmp_path, server):
    def speak(number: int) -> None:
        telling = notifier(tmp_path, Clock(), per_hour=1000)
        for n in range(5):
            telling.send(Event("info", f"{number}.{n}"))

    children = [threading.Thread(target=in_child, args=(lambda k=k: speak(k),)) for k in range(4)]
    for child in children:
        child.start()
    for child in children:
        child.join()
    left = notifier(tmp_path, Clock(), per_hour=1000).flush(force=True)
    assert left.queued == 0
    assert sorted(titles(server)) == sorted(f"{k}.{n}" for k in range(4) for n in range(5))


def test_what_is_no_message_is_set_aside(tmp_path, server, clock):
    telling = notifier(tmp_path, clock)
    telling.send(Event("info", "first"))
    for number, text in enumerate(['{"id": "torn', "[]", "{}", "\udcff"]):
        path = telling.post.outbox.queue / f"{number}.json"
        path.write_bytes(text.encode(errors="surrogateescape"))
    (telling.post.outbox.folder / "state.json").write_text("{}")
    assert telling.send(Event("info", "second")) == "sent"
    assert telling.status().failed == 4
    with pytest.raises(NotifyError, match="no queued message"):
        read_message('{"level": "info"}')


def full_disk(*_: object) -> None:
    raise OSError(28, "No space left on device")


def test_a_disk_that_takes_nothing_is_said_and_the_message_still_sent(
    tmp_path, server, clock, monkeypatch
):
    monkeypatch.setattr("crypto_ml.outbox.write_atomically", full_disk)
    said = []
    telling = notifier(tmp_path, clock, said)
    assert telling.send(Event("critical", "Disk is full")) == "sent"
    assert titles(server) == ["Disk is full"]
    assert "cannot be queued" in said[0]
    server.misbehave("500")
    assert telling.send(Event("critical", "Disk is still full")) == "failed"
    assert "is lost to critical" in said[-1]


def test_a_delivery_that_cannot_be_recorded_is_not_repeated(tmp_path, server, clock, monkeypatch):
    telling = notifier(tmp_path, clock)
    telling.post.outbox.add(make_message(Event("info", "A run"), "info", NOON, "1"))
    monkeypatch.setattr("crypto_ml.outbox.write_atomically", full_disk)
    telling.flush()
    telling.flush()
    assert len(server.requests) == 1


def test_a_clock_that_is_put_back_silences_nothing(tmp_path, server, clock):
    telling = notifier(tmp_path, clock)
    clock.now += 10 * 86400
    server.misbehave("500", times=3)
    telling.send(Event("info", "A run"))
    clock.now = NOON
    assert telling.send(Event("info", "Another")) == "sent"
    assert sorted(titles(server)) == ["A run", "Another"]


# Secrets and faults of the caller


def test_no_address_is_silent_and_said_once(tmp_path, clock):
    said = []
    telling = notifier(tmp_path, clock, said, addresses={})
    assert [telling.send(Event("info", "A run")) for _ in range(3)] == ["silent"] * 3
    assert len(said) == 1
    assert "CRYPTO_ML_NOTIFY_INFO" in said[0]
    assert not (tmp_path / "outbox").exists()
    assert str(telling.status().channels[0]) == "info: no address"


def test_an_address_that_cannot_be_read_now_may_be_read_later(tmp_path, server, clock):
    def unreadable(name: str) -> str:
        raise SecretError(f"{name} cannot be read: the secret manager does not answer")

    telling = notifier(tmp_path, clock, addresses=unreadable)
    assert telling.send(Event("info", "A run")) == "queued"
    assert "does not answer" in telling.status().problems[0]
    assert notifier(tmp_path, clock).flush(force=True).queued == 0


def test_the_address_is_in_no_file_log_or_status(tmp_path, server, clock, monkeypatch, capfd):
    log = io.StringIO()
    handler = logging.StreamHandler(log)
    root = logging.getLogger()
    monkeypatch.setattr(root, "level", logging.DEBUG)
    root.addHandler(handler)
    for name in ("apprise", "urllib3"):
        monkeypatch.setattr(logging.getLogger(name), "level", 1)
    said = []
    telling = notifier(tmp_path, clock, said)
    try:
        for fault in ("500", "429", "drop", "404", "400"):
            server.misbehave(fault, times=9)
            telling.send(Event("info", fault))
            server.faults.clear()
        message = Message("1", "a", "info", "k", NOON, "t")
        bad = [f"{scheme}{TOKEN}" for scheme in ("discord://", "slack://", "", "nope://")]
        said += [send_message(message, address).why for address in bad]
        said.append(str(telling.status()))
    finally:
        root.removeHandler(handler)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 3
    written = b"".join(path.read_bytes() for path in files).decode()
    captured = "".join(capfd.readouterr())
    for place, text in {
        "log": log.getvalue(),
        "files": written,
        "said": str(said),
        "out": captured,
    }.items():
        assert TOKEN not in text, place
    assert "apprise" not in log.getvalue()
    assert not logging.getLogger("apprise").disabled


def test_whatever_goes_wrong_the_work_goes_on(tmp_path, clock, monkeypatch):
    said = []
    telling = notifier(tmp_path, clock, said)

    def broken(*_: object) -> None:
        raise RuntimeError(f"cannot reach {ADDRESS}")

    monkeypatch.setattr("crypto_ml.notify.make_message", broken)
    monkeypatch.setattr("crypto_ml.notify.deliver", broken)
    assert telling.send(Event("info", "A run")) == "failed"
    telling.flush()
    assert said == [
        "'A run' was not notified: RuntimeError",
        "queued notifications were not delivered: RuntimeError",
    ]


def test_without_apprise_the_remedy_is_named(tmp_path, clock, monkeypatch):
    apprise_library.cache_clear()
    monkeypatch.setitem(sys.modules, "apprise", None)
    telling = notifier(tmp_path, clock)
    assert telling.send(Event("info", "A run")) == "queued"
    assert "pip install 'crypto_ml[notify]'" in telling.status().problems[0]


@pytest.mark.parametrize(
    ("answer", "ok", "pause", "refused"),
    [
        (
            (204, {"X-RateLimit-Remaining": "1", "X-RateLimit-Reset-After": "9"}, None),
            True,
            0,
            False,
        ),
        (
            (200, {"X-RateLimit-Remaining": "0", "X-RateLimit-Reset-After": "1.5"}, {}),
            True,
            1.5,
            False,
        ),
        ((429, {"Retry-After": "7"}, {"retry_after": 0.3}), False, 0.3, False),
        ((429, {"Retry-After": "soon"}, "text"), False, 0, False),
        ((429, {}, {"retry_after": 1e9}), False, 86400, False),
        ((413, {}, None), False, 0, True),
        ((401, {}, None), False, 0, False),
        ((302, {"Location": "https://elsewhere.example"}, None), False, 0, False),
    ],
)
def test_answers_of_discord(answer, ok, pause, refused):
    found = discord_answer(*answer)
    assert (found.ok, found.pause, found.refused) == (ok, pause, refused)


def test_the_projects_notifier_reads_the_environment(tmp_path, server, clock, monkeypatch):
    (tmp_path / "settings.ini").write_text("[notify]\nper_hour = 1\n")
    settings = load_settings(tmp_path / "settings.ini")
    given_environment = {"CRYPTO_ML_NOTIFY": ADDRESS}
    telling = open_notifier(settings, given_environment, clock=clock, sleep=clock.sleep)
    assert telling.send(Event("info", "A run")) == "sent"
    assert (tmp_path / "runs" / ".notify" / "state.json").exists()
    monkeypatch.setenv("CRYPTO_ML_NOTIFY_WARNING", ADDRESS)
    monkeypatch.delenv("CRYPTO_ML_NOTIFY", raising=False)
    telling = open_notifier(settings, clock=clock, sleep=clock.sleep, say=print)
    assert [telling.send(Event(level, "B")) for level in ("info", "warning")] == ["silent", "sent"]


def test_a_plain_embed_has_no_empty_parts():
    embed = discord_embed(make_message(Event("info", "A run"), "info", NOON, "1"))
    assert set(embed) == {"title", "description", "color", "timestamp", "fields"}
    assert json.dumps(embed)
    assert os.sep not in embed["title"]
