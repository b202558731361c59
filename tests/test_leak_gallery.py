"""The gallery: every planted leak is caught by name, no twin is accused, no probe is idle."""

from __future__ import annotations

import pandas as pd
import pytest

from crypto_ml.leak_gallery import GALLERY, gallery_table
from crypto_ml.leak_report import KINDS
from crypto_ml.planted_stages import Planted

NAMED = pytest.mark.parametrize("planted", GALLERY, ids=lambda planted: planted.name)


@NAMED
def test_leak_is_caught_with_the_right_diagnosis(planted: Planted) -> None:
    found = {finding.kind: finding for finding in planted.audit(planted.leak).findings}
    assert planted.kind in found
    finding = found[planted.kind]
    assert finding.sentence and finding.to_dict()["title"] == KINDS[planted.kind].title
    if planted.probe == "future":
        assert finding.row is not None and finding.bars_ahead is not None
        assert finding.bars_ahead > 0 and finding.before != finding.after


@NAMED
def test_honest_twin_is_not_accused(planted: Planted) -> None:
    report = planted.audit(planted.twin)
    assert report.clean, str(report)


@NAMED
def test_without_its_probe_the_leak_is_missed(planted: Planted) -> None:
    kinds = {f.kind for f in planted.audit(planted.leak, without=planted.probe).findings}
    assert planted.kind not in kinds


def test_every_diagnosis_of_the_book_is_in_the_gallery() -> None:
    assert {planted.kind for planted in GALLERY} == set(KINDS)
    assert len(GALLERY) >= 50


def test_table_says_first_row_and_distance() -> None:
    table = gallery_table([planted for planted in GALLERY if planted.name == "rolled backwards"])
    assert table["caught"].all() and table["twin clean"].all()
    assert table["bars ahead"].tolist() == [1]
    assert isinstance(table["first row"].iloc[0], pd.Timestamp)
