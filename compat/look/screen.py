"""The screen of `jitney top`, by textual.

Invariant: the bus is asked by one worker thread at a time, and nothing but the screen's own thread
touches the screen. What a peer may have chosen is shown as plain text, never as markup.
"""

from __future__ import annotations

import time
from typing import ClassVar

from rich.text import Text
from textual import work
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.screen import Screen
from textual.widgets import DataTable, Footer, Input, Static

from . import asking, figures, rates
from .asking import Bus, NoAnswer, Record
from .closer import describe

SHOWN = 200
"""Rows. Who is looked for and not among the first ones is found with a filter."""


class Table(DataTable[Text]):
    """A table that says what a row can be asked."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("enter", "select_cursor", "Look closer")]


class Top(App[None]):
    """The table of all connections."""

    TITLE = "jitney top"
    ENABLE_COMMAND_PALETTE = False
    CSS = """
    #summary { height: 1; background: $primary; color: $text; padding: 0 1; }
    #wanted { display: none; height: 3; }
    DataTable { height: 1fr; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("q", "quit", "Quit"),
        Binding("s", "sort(1)", "Sort by next"),
        Binding("S", "sort(-1)", "by previous"),
        Binding("r", "reverse", "Reverse"),
        Binding("slash", "filter", "Filter"),
        Binding("escape", "no_filter", "No filter", show=False),
        Binding("p", "pause", "Pause"),
    ]

    def __init__(self, bus: Bus, delay: float, sort: str, wanted: str) -> None:
        super().__init__()
        self.bus = bus
        self.watcher = rates.Watcher(bus)
        self.delay = delay
        self.sort_key = sort
        self.reversed = False
        self.wanted = wanted
        self.paused = False
        self.rows: list[rates.Row] = []
        self.status: Record = {}
        self.trouble = ""
        self.asking = False

    def compose(self) -> ComposeResult:
        yield Static("", id="summary", markup=False)
        yield Input(placeholder="name, user, command or control group", id="wanted")
        yield Table(cursor_type="row", zebra_stripes=True)
        yield Footer()

    def on_mount(self) -> None:
        self.table.focus()
        self.ask()
        # The first rates come soon, from a short look.
        self.set_timer(min(0.5, self.delay / 2), self.ask_again)
        self.set_interval(self.delay, self.ask_again)

    @property
    def table(self) -> DataTable[Text]:
        return self.screen_stack[0].query_one(DataTable)

    def ask_again(self) -> None:
        if not self.paused and not self.asking:
            self.ask()

    def ask(self) -> None:
        self.asking = True
        self.look()

    @work(thread=True)
    def look(self) -> None:
        try:
            found, status = self.watcher.look(time.monotonic())
        except NoAnswer as reason:
            self.call_from_thread(self.show_trouble, str(reason))
        else:
            self.call_from_thread(self.show, found, status)
        finally:
            self.asking = False

    def show_trouble(self, text: str) -> None:
        self.trouble = text
        self.draw()

    def show(self, found: list[rates.Row], status: Record) -> None:
        self.rows, self.status, self.trouble = found, status, ""
        self.draw()
        if isinstance(self.screen, Peer):
            self.screen.ask()

    def draw(self) -> None:
        """The table anew, with the cursor where it was."""
        kept = rates.ordered(self.rows, self.sort_key, self.reversed, self.wanted)
        text = self.trouble or (rates.summary(self.status) if self.status else "")
        if self.paused:
            text = f"PAUSED  {text}"
        if self.wanted:
            text += f"  /{self.wanted}"
        if len(kept) > SHOWN:
            text += f"  (the first {SHOWN} of {len(kept)})"
        self.screen_stack[0].query_one("#summary", Static).update(figures.clean(text))
        table = self.table
        chosen = self.chosen()
        offset = table.scroll_offset
        table.clear(columns=True)
        for key, (head, _, _, right) in rates.COLUMNS.items():
            arrow = ("^" if self.reversed == right else "v") if key == self.sort_key else ""
            table.add_column(Text(head + arrow, justify="right" if right else "left"), key=key)
        place = 0
        for i, row in enumerate(kept[:SHOWN]):
            style = "bold red" if row.throttled else ""
            table.add_row(
                *(
                    Text(figures.clean(shown(row)), style, justify="right" if right else "left")
                    for _, shown, _, right in rates.COLUMNS.values()
                ),
                key=row.peer,
            )
            if row.peer == chosen:
                place = i
        table.move_cursor(row=place, scroll=False)
        table.scroll_to(offset.x, offset.y, animate=False)

    def chosen(self) -> str:
        """The connection under the cursor."""
        table = self.table
        if not table.row_count:
            return ""
        key = table.coordinate_to_cell_key(table.cursor_coordinate).row_key.value
        return key or ""

    def action_sort(self, step: int) -> None:
        keys = list(rates.COLUMNS)
        self.sort_key = keys[(keys.index(self.sort_key) + step) % len(keys)]
        self.draw()

    def action_reverse(self) -> None:
        self.reversed = not self.reversed
        self.draw()

    def action_pause(self) -> None:
        self.paused = not self.paused
        self.draw()

    def action_filter(self) -> None:
        screen = self.screen_stack[0]
        field = screen.query_one("#wanted", Input)
        field.value = self.wanted
        field.styles.display = "block"
        # At once: focus() takes its turn after what was typed meanwhile.
        screen.set_focus(field)

    def action_no_filter(self) -> None:
        self.screen_stack[0].query_one("#wanted", Input).styles.display = "none"
        self.wanted = ""
        self.table.focus()
        self.draw()

    def on_input_changed(self, event: Input.Changed) -> None:
        self.wanted = event.value
        self.draw()

    def on_input_submitted(self) -> None:
        self.screen_stack[0].query_one("#wanted", Input).styles.display = "none"
        self.table.focus()

    def on_data_table_header_selected(self, event: DataTable.HeaderSelected) -> None:
        key = event.column_key.value or self.sort_key
        if key == self.sort_key:
            self.reversed = not self.reversed
        self.sort_key = key
        self.draw()

    def on_data_table_row_selected(self, event: DataTable.RowSelected) -> None:
        name = self.chosen()
        if name:
            self.push_screen(Peer(self.bus, name))


class Peer(Screen[None]):
    """One connection from near."""

    CSS = "#about { padding: 1 2; }"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q,enter", "app.pop_screen", "Back"),
    ]

    def __init__(self, bus: Bus, peer: str) -> None:
        super().__init__()
        self.bus = bus
        self.peer = peer

    def compose(self) -> ComposeResult:
        with VerticalScroll():
            yield Static("", id="about", markup=False)
        yield Footer()

    def on_mount(self) -> None:
        self.ask()

    @work(thread=True, exclusive=True)
    def ask(self) -> None:
        try:
            text = describe(asking.identified(self.bus.peer(self.peer)))
        except NoAnswer as reason:
            text = figures.clean(str(reason))
        self.app.call_from_thread(self.show, text)

    def show(self, text: str) -> None:
        self.query_one("#about", Static).update(text)
