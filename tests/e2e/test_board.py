"""The board in a real browser: live without a reload, on a phone, in the dark, by keyboard and for screen readers."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import quote

import psycopg
import pytest
from playwright.sync_api import Browser, Locator, expect
from psycopg.types.json import Jsonb
from tests import game_rows
from tests.conftest import Database, Server
from tests.e2e.browser import DESK, PHONE, Visit, browsing, needs_chromium
from tests.support import ExporterProcess

pytestmark = needs_chromium
EAGER = ("--reconcile-interval", "500ms")
"""What pipelines wait for is read with each reconciliation."""
SMALLEST = {"width": 320, "height": 640}
BROKEN_NUMBERS = """
() => [...document.querySelectorAll(
    ".number, .percent, .share, .age, dd[data-sum], dd[data-trend]"
)].filter((place) => {
    const text = document.createTreeWalker(place, NodeFilter.SHOW_TEXT).nextNode();
    if (text === null || place.checkVisibility() === false) return false;
    const range = document.createRange();
    range.selectNode(text);
    const box = place.parentElement.getBoundingClientRect();
    const tops = new Set([...range.getClientRects()].map((line) => Math.round(line.top)));
    return tops.size > 1 || range.getBoundingClientRect().right > box.right + 1;
}).map((place) => place.outerHTML)
"""
"""Numbers on the page that take two lines, or reach out of their box."""
HOSTILE = (
    "<script>window.hacked=1</script>",
    "<img src=x onerror=window.hacked=1>",
    "&lt;b&gt; \"quoted\" 'and' \\ {braces}",
    "ABC\u202eFED\u2066\u200b\t\x07",
    "שלום עולם",
    "W" * 64,
)
"""Names that rows may hold; nothing of them may be more than text."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with browsing() as started:
        yield started


Playing = tuple[ExporterProcess, psycopg.Connection]


@contextmanager
def playing(server: Server) -> Iterator[Playing]:
    """Run an exporter with a game that has something of everything, hostile names among it."""
    with contextmanager(server.clone)(server.installed) as database, database.connect() as connection:
        # Before the exporter starts, because it reads the agents' names as seldom as it reconciles.
        for agent in ("TORWIND", "TORWIND", HOSTILE[-1]):
            game_rows.add_player(connection, agent)
        with ExporterProcess(database.dsn, *EAGER, "--web.grafana-url", "https://grafana.example/at/") as exporter:
            exporter.wait_ready()
            fill(connection)
            yield exporter, connection


def fill(connection: psycopg.Connection) -> None:
    connection.execute(
        "INSERT INTO ships (ship_symbol, player_id, cargo_capacity) VALUES ('SHIP-1', 1, 40), ('SHIP-2', 1, 40)"
    )
    for n, name in enumerate(HOSTILE):
        add_pipeline(connection, f"p-{n}", name)
        connection.execute(
            """INSERT INTO manufacturing_factory_states
                   (factory_symbol, output_good, player_id, pipeline_id, required_inputs, current_supply)
               VALUES (%s, %s, 1, %s, '[]', 'MODERATE')""",
            (name, name, f"p-{n}"),
        )
    connection.execute(
        """INSERT INTO manufacturing_tasks (id, player_id, task_type, status, good, assigned_ship)
           VALUES ('t-1', 1, 'COLLECT_SELL', 'READY', 'G', '<b>SHIP</b>')"""
    )
    game_rows.add_task(connection, "t-3", player_id=3, task_type="LIQUIDATE")
    for n, site in enumerate(("X1-I52", *HOSTILE, "")):
        game_rows.add_pipeline(
            connection,
            f"c-{n}",
            pipeline_type="CONSTRUCTION",
            construction_site=site,
            materials=materials(0, dict.fromkeys(HOSTILE, 0)),
        )


@pytest.fixture(scope="module")
def shared(server: Server) -> Iterator[Playing]:
    with playing(server) as both:
        yield both


@pytest.fixture
def own(server: Server) -> Iterator[Playing]:
    """Return a game that no other test has changed."""
    with playing(server) as both:
        yield both


@pytest.fixture(scope="module")
def exporter(shared: Playing) -> ExporterProcess:
    return shared[0]


@pytest.fixture(scope="module")
def game(shared: Playing) -> psycopg.Connection:
    return shared[1]


def add_pipeline(connection: psycopg.Connection, key: str, product: str) -> None:
    connection.execute(
        """INSERT INTO manufacturing_pipelines (id, player_id, product_good, sell_market, expected_price, status)
           VALUES (%s, 1, %s, 'M', 1, 'PLANNING')""",
        (key, product),
    )


def complete(connection: psycopg.Connection, key: str, profit: int) -> None:
    connection.execute(
        """UPDATE manufacturing_pipelines SET status = 'COMPLETED', completed_at = now(),
               total_revenue = greatest(%(profit)s, 0), total_cost = greatest(-%(profit)s, 0) WHERE id = %(key)s""",
        {"profit": profit, "key": key},
    )


def materials(delivered: int, others: dict[str, int]) -> Jsonb:
    """Return what a site needs: FAB_MATS, of which units are delivered, and other goods with theirs."""
    needed = {"FAB_MATS": 1600, "ADVANCED_CIRCUITRY": 400}
    units = {"FAB_MATS": delivered, "ADVANCED_CIRCUITRY": 100} | others
    return Jsonb(
        [
            {"tradeSymbol": good, "deliveredQuantity": n, "targetQuantity": needed.get(good, 0)}
            for good, n in units.items()
        ]
    )


def test_a_change_appears_without_a_reload(browser: Browser, own: Playing) -> None:
    exporter, game = own
    with Visit(browser, exporter.address) as visit:
        page = visit.page
        expect(page.get_by_role("status")).to_have_text(re.compile("^Live"))
        page.evaluate("window.untouched = true")
        tasks = page.get_by_role("table", name="By type")
        row = tasks.get_by_role("row").filter(has=page.get_by_role("rowheader", name="COLLECT_SELL"))
        expect(row.get_by_role("cell")).to_have_text(["TORWIND", "0", "1", "0", "0", "0", "0"])
        game.execute("UPDATE manufacturing_tasks SET status = 'ASSIGNED', assigned_ship = 'SHIP-1' WHERE id = 't-1'")
        expect(row.get_by_role("cell")).to_have_text(["TORWIND", "0", "0", "1", "0", "0", "0"])
        newest = page.get_by_role("table", name="Newest first").get_by_role("row").nth(1)
        expect(newest).to_contain_text("READY →  to ASSIGNED")
        expect(newest).to_contain_text("SHIP-1")
        expect(page.locator("[data-sum=ships_assigned]")).to_have_text("1")
        sites = page.get_by_role("table", name="What live pipelines have delivered").get_by_role("row")
        site = sites.filter(has=page.get_by_role("rowheader", name="X1-I52"))
        expect(site.nth(0).get_by_role("cell")).to_have_text(["TORWIND", "FAB_MATS", "0", "1,600", "0 %"])
        expect(site.nth(1).get_by_role("cell")).to_have_text(["TORWIND", "ADVANCED_CIRCUITRY", "100", "400", "25 %"])
        game.execute("UPDATE manufacturing_pipelines SET materials = %s WHERE id = 'c-0'", (materials(1200, {}),))
        expect(site.nth(0).get_by_role("cell")).to_have_text(["TORWIND", "ADVANCED_CIRCUITRY", "100", "400", "25 %"])
        expect(site.nth(1).get_by_role("cell")).to_have_text(["TORWIND", "FAB_MATS", "1,200", "1,600", "75 %"])
        expect(newest).to_contain_text("FAB_MATS +1,200")
        # A second player of the same agent: only now the name is not enough.
        expect(page.get_by_text("TORWIND (1)")).to_have_count(0)
        game_rows.add_task(game, "t-2", player_id=2, task_type="LIQUIDATE")
        expect(newest.get_by_role("cell", name="TORWIND (2)")).to_be_visible()
        for name in ("TORWIND (1)", "TORWIND (2)"):
            expect(page.get_by_role("rowheader", name=name)).to_be_visible()
        expect(row.get_by_role("cell").first).to_have_text("TORWIND (1)")
        assert page.evaluate("window.untouched") is True
        assert visit.complaints == []
        assert all(url.startswith(f"{exporter.address}/") for url in visit.asked)


def test_hostile_names_are_text(browser: Browser, exporter: ExporterProcess, game: psycopg.Connection) -> None:
    with Visit(browser, exporter.address) as visit:
        page = visit.page
        pipelines = page.get_by_role("table", name="By product")
        for name in HOSTILE[:3]:
            expect(pipelines.get_by_text(name, exact=True)).to_be_visible()
        # Marks that turn or hide text are shown by number, and what runs from right to left stays in its cell.
        expect(pipelines.get_by_text(r"ABC\u{202e}FED\u{2066}\u{200b}\u{9}\u{7}", exact=True)).to_be_visible()
        expect(page.get_by_role("table", name="Live pipelines, open tasks")).to_contain_text(HOSTILE[-1])
        expect(pipelines.locator("bdi").get_by_text("שלום עולם", exact=True)).to_be_visible()
        delivered = dict.fromkeys(HOSTILE[3:], 1)
        game.execute("UPDATE manufacturing_pipelines SET materials = %s WHERE id = 'c-1'", (materials(0, delivered),))
        remarks = page.get_by_role("table", name="Newest first").locator(".remark bdi")
        expect(remarks.filter(has_text=r"ABC\u{202e}FED\u{2066}\u{200b}\u{9}\u{7} +1").first).to_be_visible()
        sites = page.get_by_role("table", name="What live pipelines have delivered")
        for name in HOSTILE[:3]:
            expect(sites.get_by_role("rowheader", name=name).first).to_be_visible()
            expect(sites.get_by_role("cell", name=name).first).to_be_visible()
        expect(sites.get_by_role("rowheader", name="no name").first).to_be_visible()
        assert page.evaluate("[window.hacked ?? null, document.images.length, document.scripts.length]") == [None, 0, 1]
        assert visit.complaints == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("viewport", [DESK, PHONE], ids=["desk", "phone"])
def test_it_is_for_everyone(
    browser: Browser, exporter: ExporterProcess, game: psycopg.Connection, scheme: str, viewport: dict[str, int]
) -> None:
    assert not game.closed
    with Visit(browser, exporter.address, color_scheme=scheme, viewport=viewport, reduced_motion="reduce") as visit:
        page = visit.page
        expect(page.get_by_role("status")).to_have_text(re.compile("^Live"))
        expect(page.get_by_role("rowheader", name="COLLECT_SELL").first).to_be_visible()
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        ends = "(element) => Math.floor(element.getBoundingClientRect().right)"
        for table in page.locator("table").all():
            assert table.evaluate(ends) <= table.locator("xpath=ancestor::section").evaluate(ends)
        red = page.evaluate("Number(getComputedStyle(document.body).backgroundColor.match(/[0-9]+/)[0])")
        assert (red > 200) == (scheme == "light")
        for landmark in ("banner", "navigation", "main", "contentinfo"):
            expect(page.get_by_role(landmark)).to_be_visible()
        # On a phone the tables look like cards, and are tables all the same.
        expect(page.get_by_role("table")).to_have_count(7)
        assert page.get_by_role("columnheader", name="Product").count() == 2
        assert visit.violations() == []
        assert visit.complaints == []


def test_by_keyboard(browser: Browser, exporter: ExporterProcess, game: psycopg.Connection) -> None:
    with Visit(browser, exporter.address) as visit:
        page = visit.page
        expect(page.get_by_role("status")).to_have_text(re.compile("^Live"))
        order = []
        for _ in range(7):
            page.keyboard.press("Tab")
            order.append(page.evaluate("document.activeElement.textContent"))
            assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
            assert page.evaluate("document.activeElement.getBoundingClientRect().top >= 0")
        assert order[:6] == ["Skip to the board", "Metrics", "Healthy", "Ready", "Grafana", "Pause"]
        assert order[6].startswith("All players")
        page.get_by_role("button", name="Pause").focus()
        page.keyboard.press("Space")
        expect(page.get_by_role("button", name="Pause", pressed=True)).to_be_focused()
        expect(page.get_by_role("status")).to_have_text(re.compile("^Paused"))
        add_pipeline(game, "while-paused", "PAUSED")
        with Visit(browser, exporter.address) as other:
            expect(other.page.get_by_role("rowheader", name="PAUSED").first).to_be_visible()
        expect(page.get_by_role("rowheader", name="PAUSED")).to_have_count(0)
        page.keyboard.press("Space")
        expect(page.get_by_role("rowheader", name="PAUSED").first).to_be_visible()
        expect(page.get_by_role("button", name="Pause", pressed=False)).to_be_focused()
        page.get_by_role("link", name="Skip to the board").focus()
        page.keyboard.press("Enter")
        expect(page.get_by_role("main")).to_be_focused()


def test_why_a_pipeline_is_stuck(browser: Browser, own: Playing) -> None:
    exporter, game = own
    for key, player, minutes in (("stuck", 1, "90 minutes"), ("busy", 3, "30 minutes"), ("stuck too", 1, "3 hours")):
        game_rows.add_pipeline(
            game, key, player_id=player, product_good="CLOTHING", status="EXECUTING", created_at=game_rows.ago(minutes)
        )
    game_rows.add_factory(
        game, "X1-F", pipeline_id="stuck", required_inputs=Jsonb(["FABRICS", "DYE"]), output_good="CLOTHING"
    )
    game_rows.add_task(game, "stuck-1", pipeline_id="stuck", created_at=game_rows.ago("80 minutes"))
    busy: dict[str, object] = {"status": "EXECUTING", "assigned_ship": "S", "started_at": game_rows.ago("70 seconds")}
    game_rows.add_task(game, "busy-1", pipeline_id="busy", player_id=3, **busy)
    with Visit(browser, exporter.address) as visit:
        page = visit.page
        table = page.get_by_role("table", name="The oldest first")

        def row(key: str) -> Locator:
            return table.get_by_role("row").filter(has=page.get_by_role("cell", name=key, exact=True))

        waiting = row("stuck").get_by_role("cell")
        expect(waiting.nth(4)).to_have_text("X1-F lacks FABRICS, DYE")
        expect(waiting.nth(3)).to_have_text(re.compile("^1\u00a0h 3[0-9]\u00a0min$"))
        expect(waiting.nth(5)).to_have_text(re.compile("^1\u00a0h 2[0-9]\u00a0min$"))
        under_way = row("busy").get_by_role("cell")
        expect(under_way.nth(4)).to_have_text("1 task under way")
        expect(under_way.nth(5)).to_have_text(re.compile("^1\u00a0min [1-5][0-9]\u00a0s$"))
        shown = under_way.nth(5).inner_text()
        expect(under_way.nth(5)).not_to_have_text(shown)  # it goes on without a word from the exporter
        # The oldest stay where they are, whatever happens to the others.
        keys = table.locator("tbody code").all_inner_texts()
        assert keys[:3] == ["stuck too", "stuck", "busy"]
        game.execute("UPDATE manufacturing_tasks SET status = 'READY', ready_at = now() WHERE id = 'stuck-1'")
        expect(waiting.nth(4)).to_have_text(re.compile("^1 task ready, [12] idle ships?$"))
        assert table.locator("tbody code").all_inner_texts() == keys
        expect(page.locator("#active")).to_have_text(
            re.compile("^The bot last changed something [0-9]+\u00a0s ago[.]$")
        )
        # One player alone, everywhere; hostile names are names like others.
        page.get_by_label("Player", exact=True).select_option(HOSTILE[-1])
        expect(row("busy")).to_have_count(1)
        expect(row("stuck")).to_have_count(0)
        expect(page.get_by_role("table", name="Live pipelines, open tasks").locator("tbody tr")).to_have_count(1)
        page.get_by_label("Player", exact=True).select_option("")
        expect(row("stuck")).to_have_count(1)
        # Changes have dates, and a change of times alone is none.
        newest = page.get_by_role("table", name="Newest first").get_by_role("row").nth(1)
        expect(newest).to_contain_text("stuck-1")
        game.execute("UPDATE manufacturing_tasks SET ready_at = now() + interval '1 second' WHERE id = 'stuck-1'")
        game_rows.add_task(game, "after", player_id=3)
        expect(newest).to_contain_text("after")
        expect(page.get_by_role("table", name="Newest first").get_by_role("row").nth(2)).to_contain_text("READY")
        today = page.evaluate("new Intl.DateTimeFormat([], { day: 'numeric', month: 'short' }).format(new Date())")
        expect(newest.get_by_role("cell").first).to_contain_text(today)
        # The last hour, and the way to Grafana.
        complete(game, "stuck too", -800)
        expect(page.locator("[data-trend=completed]")).to_have_text("1")
        expect(page.locator("[data-trend=profit]")).to_have_text("-800")
        heights = page.locator("[data-trend=profit] rect").evaluate_all(
            "(bars) => bars.map((bar) => bar.height.baseVal.value)"
        )
        # Most often of the last bar; a new one may have begun meanwhile.
        assert len([height for height in heights if height > 0]) == 1
        link = page.get_by_role("link", name="Grafana")
        expect(link).to_have_attribute("href", "https://grafana.example/at/d/manufacturing-pipeline")
        assert visit.complaints == []


def test_one_pipeline_has_an_address(browser: Browser, exporter: ExporterProcess, game: psycopg.Connection) -> None:
    key = "one / two?three#four%20<b>five</b>"
    game_rows.add_pipeline(game, key, product_good="<i>SHIP_PLATING</i>", created_at=game_rows.ago("2 hours"))
    for n, status in enumerate(("PENDING", "PENDING", "READY")):
        game_rows.add_task(game, f"of-one-{n}", pipeline_id=key, status=status)
    with Visit(browser, f"{exporter.address}/#/pipeline/{quote(key, safe='')}", reduced_motion="reduce") as visit:
        page = visit.page
        section = page.get_by_role("region", name=f"Pipeline {key}")

        def fact(name: str) -> Locator:
            return section.locator("div").filter(has=page.locator("dt", has_text=re.compile(f"^{name}$"))).locator("dd")

        expect(fact("Product")).to_have_text("<i>SHIP_PLATING</i>")
        expect(fact("Player")).to_contain_text("TORWIND (1)")
        expect(fact("Status")).to_have_text("PLANNING")
        expect(fact("Age")).to_have_text(re.compile("^2\u00a0h"))
        expect(fact("Tasks pending")).to_have_text("2")
        expect(fact("Tasks ready")).to_have_text("1")
        # It goes on while one watches, and once it has ended as well.
        game.execute(
            "UPDATE manufacturing_pipelines SET status = 'EXECUTING', started_at = now() WHERE id = %s", (key,)
        )
        expect(fact("Status")).to_have_text("EXECUTING")
        newest = section.get_by_role("row").nth(1)
        expect(newest).to_contain_text("PLANNING →  to EXECUTING")
        assert visit.violations() == []
        complete(game, key, 1_500)
        expect(fact("Status")).to_have_text("COMPLETED")
        expect(fact("Revenue")).to_have_text("1,500")
        expect(newest).to_contain_text("EXECUTING →  to COMPLETED")
        # The links in the table lead to other ones, and back.
        game_rows.add_pipeline(game, "another one", product_good="CLOTHING")
        page.get_by_role("table", name="The oldest first").get_by_role("link", name="another one").click()
        other = page.get_by_role("region", name="Pipeline another one")
        expect(other).to_contain_text("CLOTHING")
        expect(other).not_to_contain_text("SHIP_PLATING")
        expect(other.get_by_role("heading")).to_be_focused()
        page.go_back()
        expect(fact("Status")).to_have_text("COMPLETED")
        # The link that skips to the board leaves it as it is.
        page.get_by_role("link", name="Skip to the board").focus()
        page.keyboard.press("Enter")
        expect(page.get_by_role("main")).to_be_focused()
        game.execute("UPDATE manufacturing_pipelines SET net_profit = 1500 WHERE id = %s", (key,))
        expect(newest).to_contain_text("profit +1,500")
        expect(section).to_be_visible()
        section.get_by_role("link", name="Close").click()
        expect(section).to_be_hidden()
        for address, heading in (
            ("#/pipeline/never-was", "Pipeline never-was"),
            ("#/task/never-was", "Task never-was"),
            ("#/pipeline/100%", "Pipeline 100%"),
        ):
            page.evaluate("(hash) => { location.hash = hash }", address)
            unknown = page.get_by_role("region", name=heading)
            expect(unknown).to_contain_text("Not known to this exporter")
            expect(unknown).to_contain_text("or it ended before")
            expect(unknown.get_by_role("table")).to_be_hidden()
        page.evaluate("location.hash = '#/task/of-one-2'")
        expect(page.get_by_role("region", name="Task of-one-2")).to_contain_text("READY")
        assert page.evaluate("window.hacked ?? null") is None
        assert visit.violations() == []
        assert visit.complaints == []


@pytest.mark.parametrize(
    "viewport",
    [
        pytest.param(SMALLEST, id="320 px"),
        pytest.param(PHONE, id="phone", marks=pytest.mark.thorough),
        pytest.param(DESK, id="desk"),
    ],
)
def test_no_number_breaks_and_a_phone_page_is_short(
    browser: Browser, exporter: ExporterProcess, game: psycopg.Connection, viewport: dict[str, int]
) -> None:
    for n in range(20):
        game_rows.add_pipeline(game, f"many-{viewport['width']}-{n}", product_good=f"GOOD_{n}")
    game_rows.add_pipeline(game, f"rich-{viewport['width']}", status="EXECUTING", started_at=game_rows.NOW)
    complete(game, f"rich-{viewport['width']}", 1_999_999_999)
    with Visit(browser, exporter.address, viewport=viewport, reduced_motion="reduce") as visit:
        page = visit.page
        expect(page.locator("[data-sum=credits_an_hour]")).to_have_text(
            re.compile("^[0-9],[0-9]{3},[0-9]{3},[0-9]{3}$")
        )
        table = page.get_by_role("table", name="The oldest first")
        expect(table.locator("tbody tr").nth(20)).to_be_attached()
        assert page.evaluate(BROKEN_NUMBERS) == []
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        everything = page.locator("#h-runs ~ button.more")
        if viewport is DESK:
            expect(everything).to_be_hidden()
            expect(table.locator("tbody tr").nth(20)).to_be_visible()
            return
        expect(table.locator("tbody tr").nth(20)).to_be_hidden()
        assert page.evaluate("document.documentElement.scrollHeight") < 12 * 740
        everything.click()
        expect(table.locator("tbody tr").nth(20)).to_be_visible()
        expect(everything).to_have_attribute("aria-expanded", "true")
        assert visit.violations() == []


@pytest.mark.parametrize("motion", ["reduce", "no-preference"])
def test_changes_are_silent_and_move_only_where_liked(
    browser: Browser, exporter: ExporterProcess, game: psycopg.Connection, motion: str
) -> None:
    with Visit(browser, exporter.address, reduced_motion=motion) as visit:
        page = visit.page
        expect(page.get_by_role("status")).to_have_text(re.compile("^Live"))
        page.evaluate(
            """() => {
                window.said = window.moved = 0;
                const count = () => window.said++;
                for (const place of document.querySelectorAll("[role=status], [aria-live]"))
                    new MutationObserver(count).observe(place, {subtree: true, childList: true, characterData: true});
                const animate = Element.prototype.animate;
                Element.prototype.animate = function (...given) { window.moved++; return animate.apply(this, given); };
            }"""
        )
        product = f"NEWS-{motion}"
        add_pipeline(game, product, product)
        expect(page.get_by_role("rowheader", name=product).first).to_be_visible()
        assert page.evaluate("window.said") == 0
        assert (page.evaluate("window.moved") > 0) == (motion == "no-preference")


def test_without_javascript(browser: Browser, exporter: ExporterProcess) -> None:
    with Visit(browser, exporter.address, java_script_enabled=False) as visit:
        expect(visit.page.get_by_role("status")).to_have_text("ready")
        expect(visit.page.get_by_text("The board needs JavaScript")).to_be_visible()
        expect(visit.page.get_by_role("button")).to_have_count(0)
        expect(visit.page.get_by_role("link", name="Metrics")).to_have_attribute("href", "./metrics")
        visit.page.get_by_role("link", name="Ready").click()
        expect(visit.page).to_have_url(f"{exporter.address}/-/ready")


def test_what_it_says_when_the_exporter_is_no_more(browser: Browser, installed: Database) -> None:
    with ExporterProcess(installed.dsn) as first, Visit(browser, first.address) as one:
        expect(one.page.get_by_role("status")).to_have_text(re.compile("^Live"))
        expect(one.page.get_by_role("heading", name="Factories")).to_be_visible()
        expect(one.page.get_by_role("heading", name="Construction")).to_be_hidden()
        with ExporterProcess(installed.dsn) as second, Visit(browser, second.address) as other:
            expect(other.page.get_by_role("status")).to_have_text(re.compile("^Standby: another exporter is active"))
            assert other.violations() == []
            assert first.terminate() == 0
            expect(one.page.get_by_role("status")).to_contain_text("No word from the exporter")
            expect(one.page.get_by_role("status").locator("time")).to_be_visible()
            expect(other.page.get_by_role("status")).to_have_text(re.compile("^Live"))
            assert one.violations() == []
