"""Symbols: a market is found in any spelling, and never another one."""

from __future__ import annotations

import pytest

from crypto_ml.errors import CandlesError
from crypto_ml.symbols import find_symbol, house_symbol

NAMES = [
    "BTC/JPY",
    "BTC/USDT",
    "BTC/USDT:USDT",
    "AB/CD",
    "ABC/D",
    "BTC/USD:BTC-240628",
    "1INCH/USDT",
]
MARKETS = {name: {"id": f"t{number}XBT"} for number, name in enumerate(NAMES)}


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("AB/CD", "ABC/D")])
def test_every_spelling_leads_to_the_market(name: str) -> None:
    house = house_symbol(name)
    for text in (
        name,
        house,
        house.lower(),
        name.lower(),
        name.replace("/", "-"),
        name.replace("/", "_"),
    ):
        assert find_symbol("example", text, MARKETS) == name


def test_the_exchange_s_own_name_is_the_last_resort() -> None:
    assert find_symbol("example", "T1xbt", MARKETS) == "BTC/USDT"


def test_two_meanings_are_an_error() -> None:
    with pytest.raises(CandlesError, match="'ABCD' may be AB/CD or ABC/D on example; write one"):
        find_symbol("example", "ABCD", MARKETS)
    assert find_symbol("example", "AB/CD", MARKETS) == "AB/CD"


def test_an_unknown_market_is_named_with_its_neighbours() -> None:
    with pytest.raises(
        CandlesError, match=r"example lists no market 'ETH/JPY'; it lists BTC/JPY, BTC"
    ):
        find_symbol("example", "ETH/JPY", MARKETS)
    many = {f"COIN{number}/USDT": {"id": str(number)} for number in range(40)} | MARKETS
    with pytest.raises(
        CandlesError, match=r"lists no market 'BTC/USTD'; did you mean 'BTC/USDT'\?"
    ):
        find_symbol("example", "BTC/USTD", many)
