"""The tables of the benchmark report: anyone who divides two figures gets the ratio that is printed beside them."""

import re

import pytest
from benchmarks import report


@pytest.mark.parametrize(
    ("value", "base", "digits", "text"),
    [
        (2464.59, 2854.11, 0, "2,465/s (0.86)"),
        (1.9978, 0.9180, 2, "2.00/s (2.17)"),
        (59.93, 9.22, 1, "59.9/s (6.51)"),
    ],
)
def test_a_ratio_is_that_of_what_is_printed(value: float, base: float, digits: int, text: str) -> None:
    assert report.compared(value, base, digits, "/s") == text


@pytest.mark.parametrize("name", ["writer table", "factory table", "history table"])
def test_ratios_agree_with_the_first_row(name: str) -> None:
    _, _, *rows = ([cell.strip() for cell in line.split("|")[2:-1]] for line in report.parts()[name].splitlines())
    checked = 0
    for column in zip(*rows, strict=True):
        found = [re.fullmatch(r"([\d,.]+)\D*\(([\d.]+)\)", cell) for cell in column]
        figures = [(float(one[1].replace(",", "")), one[2]) for one in found if one]
        for figure, ratio in figures:
            digits = len(ratio.partition(".")[2])
            assert f"{figure / figures[0][0]:.{digits}f}" == ratio
            checked += 1
    assert checked >= 6


def test_ratios_agree_with_the_column_without_it() -> None:
    checked = 0
    for line in report.parts()["question table"].splitlines()[2:]:
        _, bare, *others = (cell.strip() for cell in line.split("|")[1:-1])
        bases = [float(one.replace(",", "")) for one in re.findall(r"[\d,.]+", bare)]
        for cell in others:
            compared = re.findall(r"([\d,.]+)(?: [a-z]+)? \(([\d.]+)\)", cell)
            for base, (figure, ratio) in zip(bases, compared, strict=bool(compared)):
                assert f"{float(figure.replace(',', '')) / base:.2f}" == ratio, line
                checked += 1
    assert checked >= 14
