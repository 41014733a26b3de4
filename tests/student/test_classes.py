import csv
from pathlib import Path

import numpy as np
import pytest

from kdcache.errors import UsageError
from kdcache.student.classes import ClassTable, write_classes


def test_a_table_is_written_as_csv_with_and_without_names(tmp_path: Path) -> None:
    table = ClassTable(
        "label", np.array([0, 2]), np.array([3, 1]),
        np.array([2 / 3, 0.0]), None, np.array([0.25, 1e-9]),
    )  # fmt: skip
    write_classes(table, tmp_path / "classes.csv", names=['a "cat", tabby', "b", "ç"])
    text = (tmp_path / "classes.csv").read_text(encoding="utf-8")
    assert text.splitlines()[0] == "class,name,samples,top1,agreement,kl_nats"
    rows = list(csv.reader(text.splitlines()))[1:]
    assert rows == [
        ["0", 'a "cat", tabby', "3", "0.666667", "", "0.25"],
        ["2", "ç", "1", "0", "", "1e-09"],
    ]
    write_classes(table, tmp_path / "classes.csv")
    assert (tmp_path / "classes.csv").read_text() == (
        "class,samples,top1,agreement,kl_nats\n0,3,0.666667,,0.25\n2,1,0,,1e-09\n"
    )
    with pytest.raises(UsageError, match=r"none/classes\.csv: cannot be written: No such file"):
        write_classes(table, tmp_path / "none/classes.csv")


def test_classes_are_ranked_by_top1_or_else_by_agreement_and_kl() -> None:
    values, kl = np.array([0.5, 0.0, 0.5, 1.0]), np.array([0.1, 0.2, 0.3, 0.4])
    table = ClassTable("label", np.arange(4), np.ones(4, np.int64), values, None, None)
    assert table.worst_first().tolist() == [1, 0, 2, 3]
    assert table.quality[0] == "top1"
    table = ClassTable("teacher", np.arange(4), np.ones(4, np.int64), None, values, kl)
    assert table.worst_first().tolist() == [1, 2, 0, 3]
    assert table.quality[0] == "agreement"
