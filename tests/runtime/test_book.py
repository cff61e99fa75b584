"""Which cells the launcher's book gives out, and counts as spare."""

from __future__ import annotations

from sandgate.runtime.book import Book
from sandgate.runtime.cells import Cell, CellKind, State
from sandgate.runtime.cgroups import Limits

LIMITS = Limits(cpu_count=2, memory_mb=512, max_pids=256)
KIND, LARGER = CellKind("base", 1024, LIMITS), CellKind("base", 2048, LIMITS)


def prepared(book: Book, kind: CellKind = KIND) -> Cell:
    """A new cell in the book, which does not stand yet."""
    cell = Cell(0, 1, -1, kind, State.PREPARING)
    book.add(cell)
    return cell


def test_a_cell_is_given_out_once_it_stands_and_to_its_kind_only() -> None:
    book = Book()
    cell = prepared(book)
    assert book.preparing == {cell}
    assert book.ready(KIND) is None
    book.stands(cell)
    assert not book.preparing
    assert book.ready(KIND) is cell
    assert book.ready(LARGER) is None


def test_a_cell_that_is_somebodys_is_spare_no_more() -> None:
    book = Book()
    cells = [prepared(book), prepared(book), prepared(book, LARGER)]
    assert book.count_spare() == {KIND: 2, LARGER: 1}
    book.take(cells[0])
    book.take(cells[2])
    assert book.count_spare() == {KIND: 1}
    assert book.preparing == {cells[1]}
    assert book.cells == set(cells)


def test_nothing_is_known_of_a_cell_that_is_gone() -> None:
    book = Book()
    cell = prepared(book)
    book.remove(cell)
    assert not book.cells
    assert not book.preparing
    assert not book.count_spare()


def test_an_adopted_cell_is_never_spare() -> None:
    book = Book()
    book.add(Cell(0, 1, -1, None, State.RUNNING, sandbox_id="adopted"))
    assert not book.preparing
    assert not book.count_spare()
