"""The data check: each planted or known defect found, with its right name, and none invented."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from crypto_ml.candles import Candles, CandlesError, Market, load_candles, trusted_candles
from crypto_ml.data_check import DataCheck, check_candles, check_file, check_table
from crypto_ml.findings import SEVERITIES, Finding, bar_findings, findings_table
from crypto_ml.gaps import GAP_KINDS, classify_gaps, find_gaps
from crypto_ml.odd_bars import copied_bars, far_prices, idle_bars, stretches
from crypto_ml.reference_findings import reference_findings
from crypto_ml.references import (
    best_lag,
    likely_currency,
    price_ratio,
    split_symbol,
    volume_unit,
)
from crypto_ml.simulate import PRESETS, simulate

MARKET = Market("example", "BTCUSDT", "1h")
FINEST = "15m"


def market(seed: int = 0, bars: int = 4000, timeframe: str = "1h") -> Candles:
    """A clean simulated market under a name that says what it is quoted in."""
    frame = simulate("vol", bars=bars, seed=seed, timeframe=timeframe).candles.frame
    return trusted_candles(frame, Market("example", "BTCUSDT", timeframe), "simulated")


def feed(candles: Candles, seed: int = 0, exchange: str = "other", share: float = 0.3) -> Candles:
    """Another exchange's bars of the same market: nearly the same prices, part of the volume."""
    rng = np.random.default_rng(seed)
    noise = np.exp(rng.normal(0, 0.0005, len(candles)))
    prices = candles.frame[["open", "high", "low", "close"]].mul(noise, axis=0)
    volume = candles.frame["volume"] * share * rng.gamma(5, 0.2, len(candles))
    name = Market(exchange, candles.market.symbol, candles.market.timeframe)
    return trusted_candles(prices.assign(volume=volume), name, "feed")


def but(candles: Candles, frame: pd.DataFrame) -> Candles:
    return trusted_candles(frame, candles.market, candles.source)


def kinds(check: DataCheck) -> dict[str, str]:
    return {finding.kind: finding.severity for finding in check.findings}


# Clean markets


@pytest.mark.parametrize("seed", range(20))
def test_a_clean_market_gives_no_finding(seed: int) -> None:
    preset = sorted(PRESETS)[seed % len(PRESETS)]
    simulated = simulate(preset, bars=8640, seed=seed).candles
    candles = but(simulated, simulated.frame)
    check = check_candles(candles, reference=feed(candles, seed), now=candles.known_at[-1])
    assert check.findings == () and check.exit_code == 0 and check.verdict == "clean"


# Gaps


def without(candles: Candles, gone: np.ndarray) -> Candles:
    return but(candles, candles.frame[~gone])


def test_gaps_are_told_apart() -> None:
    candles = market(bars=8640)
    index = candles.index
    weekly = (index.day_of_week == 2) & (index.hour >= 1) & (index.hour < 3)
    outage = (index >= "2024-05-04T07:00Z") & (index < "2024-05-05T16:00Z")
    month = (index.year == 2024) & (index.month == 9)
    days = (index >= "2024-11-02") & (index < "2024-11-05")
    for gone, kind, gaps in (
        (weekly, "maintenance", weekly.sum() / 2),
        (outage, "outage", 1),
        (month, "sourcing_hole", 1),
        (days, "sourcing_hole", 1),
    ):
        found = classify_gaps(without(candles, np.asarray(gone)))
        assert set(found["kind"]) == {kind} and len(found) == gaps
        assert found["missing"].sum() == gone.sum()
    together = classify_gaps(without(candles, np.asarray(weekly | outage | month | days)))
    counts = together["kind"].value_counts()
    assert counts["outage"] == 1 and counts["sourcing_hole"] == 2 and counts["maintenance"] > 40
    check = check_candles(without(candles, np.asarray(weekly)))
    assert kinds(check) == {"maintenance": "note"} and check.exit_code == 0


def test_a_maintenance_that_moves_with_summer_time_is_one() -> None:
    candles = market(bars=8640)
    local = candles.index.tz_convert("Europe/Berlin")
    gone = np.asarray((local.day_of_week == 6) & (local.hour == 4))
    assert set(classify_gaps(without(candles, gone))["kind"]) == {"maintenance"}


def test_gaps_of_random_times_are_outages() -> None:
    for seed in range(10):
        candles = simulate("vol", bars=8640, seed=seed, gaps=30).candles
        assert set(classify_gaps(candles)["kind"]) == {"outage"}


def test_a_missing_day_of_daily_bars_is_a_hole_of_the_source() -> None:
    candles = market(bars=400, timeframe="1d")
    found = classify_gaps(but(candles, candles.frame.drop(candles.index[[100, 101, 250]])))
    assert list(found["kind"]) == ["sourcing_hole"] * 2


def test_no_trade_and_lost_bars() -> None:
    candles = market(bars=8640)
    rng = np.random.default_rng(0)
    volume = candles.frame["volume"].to_numpy()
    thin = (volume < np.quantile(volume, 0.3)) & (rng.random(len(volume)) < 0.6)
    any_bar = rng.random(len(volume)) < 0.05
    assert kinds(check_candles(without(candles, thin))) == {"no_trade": "note"}
    assert kinds(check_candles(without(candles, any_bar))) == {"lost_bars": "warning"}
    many = rng.random(len(volume)) < 0.3
    assert kinds(check_candles(without(candles, many))) == {"lost_bars": "unfit"}
    # an exchange that writes idle bars does not leave any out for want of a trade
    idle = candles.frame.copy()
    idle.loc[idle.index[5::100], "volume"] = 0.0
    assert "lost_bars" in kinds(check_candles(but(candles, idle[~thin])))
    # a long gap among them is an outage all the same
    outage = thin.copy()
    outage[3000:3600] = True
    found = classify_gaps(without(candles, outage))
    assert found[found["kind"] == "outage"]["missing"].sum() >= 600
    assert GAP_KINDS == ("sourcing_hole", "no_trade", "lost_bars", "maintenance", "outage")
    assert find_gaps(candles).empty


@pytest.mark.parametrize(
    ("share", "severity"), [(0.005, "note"), (0.05, "warning"), (0.2, "unfit")]
)
def test_outages_are_notes_until_they_take_much(share: float, severity: str) -> None:
    candles = market()
    gone = np.zeros(len(candles), bool)
    gone[1003 : 1003 + int(share * len(candles))] = True
    assert kinds(check_candles(without(candles, gone))) == {"outage": severity}


# Prices and stillness


@pytest.mark.parametrize("factor", [0.01, 0.1, 0.3, 3.0, 10.0, 1000.0])
@pytest.mark.parametrize("column", ["open", "close"])
def test_large_bad_ticks_are_found(factor: float, column: str) -> None:
    candles = market(seed=4)
    frame = candles.frame.copy()
    at = frame.index[[700, 2000, 3500]]
    frame.loc[at, column] *= factor
    frame["high"] = frame[["open", "high", "close"]].max(axis=1)
    frame["low"] = frame[["open", "low", "close"]].min(axis=1)
    (finding,) = check_candles(but(candles, frame)).findings
    assert (finding.kind, finding.severity, finding.count) == ("bad_tick", "warning", 3)
    assert finding.where[0].startswith(f"{at[0]:%Y-%m-%d %H:%M} (")


@pytest.mark.parametrize("factor", [0.7, 0.85, 1.15, 1.5])
def test_smaller_ticks_are_told_by_the_reference(factor: float) -> None:
    candles = market(seed=4)
    frame = candles.frame.copy()
    at = frame.index[[700, 2000, 3500]]
    frame.loc[at, "close"] *= factor
    frame["high"] = frame[["high", "close"]].max(axis=1)
    frame["low"] = frame[["low", "close"]].min(axis=1)
    odd = but(candles, frame)
    assert kinds(check_candles(odd)) == {"suspicious_tick": "note"}
    check = check_candles(odd, reference=candles)
    assert kinds(check) == {"lone_tick": "warning", "suspicious_tick": "note"}
    assert {finding.count for finding in check.findings} == {3}
    # the same ticks on both are a wild hour, not an error
    assert kinds(check_candles(odd, reference=feed(odd))) == {"suspicious_tick": "note"}
    # bars of another length do not tell
    assert kinds(check_candles(odd, reference=market(seed=4, timeframe="1h"))) != {}


def test_many_bad_ticks_are_unfit() -> None:
    candles = market()
    frame = candles.frame.copy()
    frame.loc[frame.index[10::100], ["close", "low"]] /= 10
    assert kinds(check_candles(but(candles, frame)))["bad_tick"] == "unfit"


def test_a_crash_that_stays_and_a_wick_are_no_bad_ticks() -> None:
    candles = market()
    crash = candles.frame.copy()
    crash.iloc[2000:, :4] *= 0.55
    assert far_prices(but(candles, crash)).empty
    wick = candles.frame.copy()
    wick.iloc[1500, 2] *= 0.2
    assert kinds(check_candles(but(candles, wick))) == {"wick": "note"}
    first = candles.frame.copy()
    first.iloc[0, [0, 2]] *= 0.1
    assert far_prices(but(candles, first)).empty
    assert far_prices(but(candles, candles.frame[:1])).empty


def test_stillness() -> None:
    candles = market()
    price = candles.frame["close"].iloc[999]
    for length, severity in ((3, "note"), (60, "warning")):
        frame = candles.frame.copy()
        frame.iloc[1000 : 1000 + length] = [price] * 4 + [0.0]
        (finding,) = check_candles(but(candles, frame)).findings
        assert (finding.kind, finding.severity, finding.count) == ("idle", severity, length)
        assert stretches(idle_bars(but(candles, frame)), candles)["bars"].tolist() == [length]
    copied = candles.frame.copy()
    copied.iloc[1001:1031] = copied.iloc[1000]
    assert kinds(check_candles(but(candles, copied))) == {"copied_bars": "warning"}
    assert copied_bars(but(candles, copied)).sum() == 30
    for step, severity in ((100, "warning"), (1, "unfit")):
        frame = candles.frame.copy()
        frame.iloc[::step, 4] = 0.0
        assert kinds(check_candles(but(candles, frame))) == {"volume_missing": severity}


# Against a reference


@pytest.mark.parametrize("hours", [-5, -1, 1, 9, 24])
@pytest.mark.parametrize("timeframe", ["15m", "1h"])
def test_shifted_times_are_found(hours: int, timeframe: str) -> None:
    candles = market(timeframe=timeframe)
    late = but(candles, feed(candles).frame.shift(freq=f"{hours}h"))
    check = check_candles(late, reference=candles)
    assert kinds(check)["time_shift"] == "unfit" and check.exit_code == 2
    (shift,) = [item for item in check.findings if item.kind == "time_shift"]
    assert shift.where == (f"{hours:+g} h",)
    lag = best_lag(late, candles)
    assert lag.hours == hours and lag.bars == hours / (candles.timeframe / pd.Timedelta("1h"))
    assert ("Asia/Tokyo" in shift.sentence) == (hours == 9)
    assert ("stamped by their close" in shift.sentence) == (lag.bars == 1)


def test_bars_stamped_by_their_close_are_found_at_five_minutes() -> None:
    candles = market(timeframe="5m")
    late = but(candles, feed(candles).frame.shift(freq="5min"))
    lag = best_lag(late, candles)
    assert lag.bars == 1 and lag.hours == pytest.approx(1 / 12)


@pytest.mark.parametrize(
    ("ratio", "severity", "words"),
    [
        (150, "unfit", "INR or JPY"),
        (1350, "unfit", "KRW"),
        (5.2, "unfit", "BRL"),
        (0.9, "warning", "EUR or GBP"),
        (0.001, "unfit", "units of 10^-3"),
        (1.2, "warning", "another currency"),
        (2.3, "unfit", "another currency"),
    ],
)
def test_other_money_is_found(ratio: float, severity: str, words: str) -> None:
    candles = market()
    other = feed(candles)
    frame = other.frame.mul([ratio] * 4 + [1.0])
    check = check_candles(but(candles, frame), reference=other)
    assert kinds(check) == {"price_level": severity}
    assert words in check.findings[0].sentence
    # two symbols that say so are not compared
    yen = trusted_candles(frame, Market("bitbank", "BTCJPY", "1h"), "feed")
    assert check_candles(yen, reference=other).findings == ()


@pytest.mark.parametrize("share", [1.0, 0.05, 8.0])
def test_quoted_volume_is_found(share: float) -> None:
    candles = market(bars=8640)
    other = feed(candles, share=share)
    volume = other.frame["volume"] * other.frame["close"]
    quoted = but(other, other.frame.assign(volume=volume))
    assert kinds(check_candles(quoted, reference=candles)) == {"volume_unit": "warning"}
    assert not volume_unit(other, candles).quoted
    few = volume_unit(but(quoted, quoted.frame[:240]), candles)
    assert few.days == 10 and np.isnan(few.slope) and few.quoted
    later = but(candles, candles.frame.shift(freq="2000D"))
    assert volume_unit(quoted, later).days == 0 and np.isnan(price_ratio(quoted, later))


def test_another_market_under_the_same_name_is_found() -> None:
    check = check_candles(market(seed=1), reference=market(seed=2))
    assert kinds(check)["other_market"] == "unfit"
    assert "no_overlap" in kinds(check_candles(market(), reference=market(bars=10)))


def test_names_and_numbers() -> None:
    assert [split_symbol(name) for name in ("BTCUSDT", "BTC/JPY", "DOGEBTC", "BTCUSDT.USDT")] == [
        ("BTC", "USD"),
        ("BTC", "JPY"),
        ("DOGE", "BTC"),
        ("BTC", "USD"),
    ]
    assert split_symbol("SIM-VOL") == ("SIM-VOL", "") and split_symbol("USD") == ("USD", "")
    assert likely_currency(1e-8) == "units of 10^-8" and likely_currency(2.2) == ""
    flat = market(bars=100).frame.assign(open=1.0, high=1.0, low=1.0, close=1.0)
    still = but(market(bars=100), flat)
    assert best_lag(still, market(bars=100)).correlation == 0


# The clock and the past


def test_stale_and_unfinished() -> None:
    candles = market(bars=100)
    last = candles.known_at[-1]
    for late, expected in (("0h", {}), ("3h", {}), ("5h", {"stale": "warning"})):
        assert kinds(check_candles(candles, now=last + pd.Timedelta(late))) == expected
    assert kinds(check_candles(candles, now=last - pd.Timedelta("1min"))) == {"unfinished": "unfit"}


@pytest.mark.parametrize(
    ("rows", "change", "severity"),
    [(1, 1.001, "note"), (1, 1.5, "warning"), (30, 1.001, "warning"), (300, 1.001, "unfit")],
)
def test_revisions_of_the_store(rows: int, change: float, severity: str) -> None:
    candles = market()
    times = np.repeat(candles.index[:rows], 2)
    first = np.tile([100.0, 5.0], rows)
    table = pd.DataFrame({"time": times, "column": ["close", "volume"] * rows, "first": first})
    table["latest"] = first * np.tile([change, 3.0], rows)
    check = check_candles(candles, revisions=table)
    assert kinds(check) == {"revised": severity} and check.findings[0].count == rows
    late = table[1:2].assign(first=np.nan)  # a bar that came later, and only its volume
    assert kinds(check_candles(candles, revisions=late)) == {"revised": "note"}
    assert check_candles(candles, revisions=table[:0]).findings == ()


# Tables


def test_tables_that_cannot_become_candles() -> None:
    sound = market(bars=500)
    frame = sound.frame

    def sorted_with(rows: pd.DataFrame) -> pd.DataFrame:
        return pd.concat([frame, rows]).sort_index(kind="stable")

    cases: dict[str, tuple[pd.DataFrame, set[str], int]] = {
        "equal": (sorted_with(frame[3:5]), {"duplicates"}, 2),
        "conflicting": (sorted_with(frame[3:6] * 1.1), {"conflicting_duplicates"}, 3),
        "unsorted": (frame.iloc[[1, 0, *range(2, 500)]], {"defect"}, 1),
        "negative": (frame.assign(volume=-frame["volume"]), {"defect"}, 500),
        "no close": (frame.drop(columns="close"), {"defect"}, 1),
        "off the grid": (frame.set_axis(frame.index + pd.Timedelta("7min")), {"defect"}, 500),
        "a broken bar": (
            frame.assign(high=frame["high"].where(frame.index != frame.index[9], 1)),
            {"defect"},
            1,
        ),
        "no time": (frame.reset_index().assign(timestamp=pd.NaT), {"defect"}, 500),
        "empty": (frame[:0], {"defect"}, 1),
    }
    for name, (table, expected, count) in cases.items():
        check = check_table(table, MARKET, source=name)
        assert set(kinds(check)) == expected, name
        assert check.exit_code == 2 and check.verdict == "unfit for training", name
        assert check.findings[0].count == count, name
    assert check_table(cases["negative"][0], MARKET).start == ""
    fine = check_table(frame, MARKET)
    assert (
        fine.exit_code == 0
        and fine.bars == 500
        and fine.start == f"{frame.index[0]:%Y-%m-%dT%H:%MZ}"
    )
    forming = check_table(frame, MARKET, now=frame.index[-1])
    assert forming.exit_code == 2 and "not over" in forming.findings[0].sentence


def test_sightings() -> None:
    frame = market(bars=100).frame.reset_index()
    table = frame.assign(seen_at=frame["timestamp"] + pd.Timedelta("61min"))
    assert check_table(table, MARKET).findings == ()
    early = frame[10:14].assign(close=frame["close"][10:14] * 1.0001, volume=0.5)
    early["high"] = early[["high", "close"]].max(axis=1)
    early["seen_at"] = early["timestamp"] + pd.Timedelta("20min")
    both = pd.concat([table.drop(index=13), early])
    check = check_table(both, MARKET)
    found = {finding.kind: finding.count for finding in check.findings}
    assert found == {"revised": 3, "unfinished": 1} and check.bars == 100
    unreadable = check_table(table.assign(seen_at="never"), MARKET)
    assert unreadable.exit_code == 0 and unreadable.bars == 100


def test_files(tmp_path: Path) -> None:
    frame = market(bars=300).frame.reset_index()
    path = tmp_path / "example_BTCUSDT_1h_with_more.csv"
    frame.to_csv(path, index=False)
    check = check_file(path)
    assert check.exit_code == 0 and check.market == "example BTCUSDT 1h" and check.bars == 300
    plain = tmp_path / "bars.parquet"
    frame.to_parquet(plain)
    assert (
        check_file(plain, exchange="a", symbol="BTCUSDT", timeframe="1h").market == "a BTCUSDT 1h"
    )
    with pytest.raises(CandlesError, match="exchange and symbol and timeframe must be known"):
        check_file(plain)
    with pytest.raises(CandlesError, match="is no file"):
        check_file(tmp_path / "nothing_BTCUSDT_1h.parquet")


def test_a_check_is_written_down_whole() -> None:
    candles = market(bars=500)
    frame = candles.frame.drop(candles.index[100:110])
    frame.iloc[300, 1] *= 5
    frame.iloc[300, 3] *= 5
    check = check_candles(but(candles, frame))
    assert json.loads(json.dumps(check.to_dict())) == check.to_dict()
    assert list(check.table()["severity"]) == ["warning", "warning"]
    assert next(iter(findings_table([]).columns)) == "severity"
    assert SEVERITIES == ("note", "warning", "unfit")
    note = Finding("a", "note", 1, ("here",), "Something.")
    assert note.to_dict()["where"] == ["here"]
    for finding in check.findings:
        assert finding.sentence.endswith(".") and len(finding.sentence) > 60


# Real candles

CLEAN = {"outage", "suspicious_tick", "idle", "wick"}  # facts, that is notes
KNOWN: dict[str, dict[str, tuple[str, int]]] = {
    "binance_BTCUSDT_5m": {"sourcing_hole": ("warning", 1)},
    "binance_ETHUSDT_5m": {"sourcing_hole": ("warning", 1)},
    "bitfinex_BTCUSD_1m": {
        "sourcing_hole": ("warning", 3),
        "bad_tick": ("warning", 8),
        "no_trade": ("note", 274_120),
    },
    "coinbase_BANDUSD_5m": {"no_trade": ("warning", 16_305)},
    "bittrex_DOGEBTC_5m_with_duplicates": {
        "conflicting_duplicates": ("unfit", 209),
        "outage": ("warning", 38),
    },
    "bitbank_BTCJPY_1h_revisions": {"revised": ("unfit", 155), "unfinished": ("unfit", 4)},
}


def test_every_known_defect_is_found_and_none_invented(real_candles_folder: Path) -> None:
    paths = sorted(real_candles_folder.glob("**/*.parquet"))
    assert len(paths) == 40
    for path in paths:
        check = check_file(path)
        known = KNOWN.get(path.stem, {})
        found = {finding.kind: (finding.severity, finding.count) for finding in check.findings}
        assert {kind: found.get(kind) for kind in known} == known, path.stem
        others = {kind: severity for kind, (severity, _) in found.items() if kind not in known}
        assert set(others) <= CLEAN and set(others.values()) <= {"note"}, path.stem
        worst = max((SEVERITIES.index(severity) for severity, _ in known.values()), default=0)
        assert check.exit_code == worst, path.stem
        outages = [finding for finding in check.findings if finding.kind == "outage"]
        if path.stem == "binance_BTCUSDT_1h":
            assert outages[0].count == 28 and "2018-02-08 01:00" in outages[0].where[0]
        if path.stem == "bitbank_BTCJPY_1m":
            assert "2018-12-18 16:12 to 2018-12-18 19:25 (193 bars)" in outages[0].where
        if path.stem == "bitfinex_BTCUSD_1m":
            assert outages[0].where[0].startswith("2016-08-02 18:03 to 2016-08-10 15:53")


def test_real_markets_against_each_other(real_candles_folder: Path) -> None:
    def load(name: str, **span: str) -> Candles:
        return load_candles(real_candles_folder / f"{name}.parquet", **span)

    bitcoin = load("binance_BTCUSDT_1h", start="2017-09-01", end="2020-01-01")
    bitfinex = load("bitfinex_BTCUSD_1m", start="2017-09-01", end="2019-12-31")
    yen = load("bitbank_BTCJPY_1m")
    ether = load("binance_ETHUSDT_1h", start="2017-09-01", end="2020-01-01")
    for ours, theirs in ((bitfinex, bitcoin), (yen, bitcoin), (ether, bitcoin), (bitcoin, yen)):
        assert list(reference_findings(ours, theirs)) == []
    dollars = trusted_candles(
        yen.frame, Market("bitbank", "BTCUSD", "1m"), "yen under a wrong name"
    )
    (finding,) = reference_findings(dollars, bitcoin)
    assert finding.kind == "price_level" and "INR or JPY" in finding.sentence
    tokyo = but(yen, yen.frame.shift(freq="9h"))
    (finding,) = reference_findings(tokyo, bitcoin)
    assert finding.kind == "time_shift" and "Asia/Tokyo" in finding.sentence
    quoted = but(
        bitfinex, bitfinex.frame.assign(volume=bitfinex.frame["volume"] * bitfinex.frame["close"])
    )
    assert [finding.kind for finding in reference_findings(quoted, bitcoin)] == ["volume_unit"]


def test_the_rules_are_quick_and_pure() -> None:
    candles = market()
    before = candles.sha256
    checks: list[Callable[[], object]] = [
        lambda: bar_findings(candles),
        lambda: check_candles(candles, reference=feed(candles)),
    ]
    assert [bool(check()) for check in checks] == [False, True]
    assert trusted_candles(candles.frame, candles.market, "").sha256 == before
