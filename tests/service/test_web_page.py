"""The page as a person uses it, in headless Chromium: a study from the form to its report."""

import pytest

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def watched(server, browser):
    """A study started from the form, watched, one trial of it stopped, all by hand; what was seen on the way."""
    seen = {}
    with browser.page() as page:
        page.go(f"{server.address}/studies/new")
        page.type("#f-name", "flowers")
        page.type("#f-trials", "3")
        page.js("document.querySelector('#f-pruner').value = 'none'")
        page.type("#f-more", "space: {epochs: 120, frozen_layers: 5}")
        page.until("document.querySelector('#preview').innerText.includes('--name flowers')")
        seen["preview"] = page.js("document.querySelector('#preview').innerText")
        page.type("#f-trials", "3x")
        page.until("document.querySelector('#preview .warning')")
        seen["warning"] = page.js("document.querySelector('#preview .warning').innerText")
        page.type("#f-trials", "3")
        page.until("document.querySelector('#preview .fine')")
        page.js("document.querySelector('#f-more').focus()")
        page.press("Tab")
        seen["focus"] = page.js("document.activeElement.innerText")
        page.press("Enter")
        page.until("location.pathname === '/studies/flowers'")
        page.until("document.querySelector('.is-running')")
        page.until(
            "document.querySelectorAll('#now progress').length > 0 && document.querySelector('#now').innerText.includes('validation loss')"
        )
        seen["live"] = page.js("document.querySelector('#now').innerText")
        page.until("document.querySelector('[data-draw=curves] .scatterlayer .trace')")
        page.shot("service-live-1280-light")
        page.until("document.querySelector('#trials form button')")
        seen["stopped"] = page.js("Number(document.querySelector('#trials form').action.match(/trials.(\\d+)/)[1])")
        page.click("#trials form button")
        page.until("document.querySelector('#trials .fate.PRUNED')")
        page.until("document.querySelector('.is-done')", 300)
        page.until("document.querySelectorAll('#trials tbody tr').length === 3 && !document.querySelector('#trials .RUNNING')")
        page.until("document.querySelector('[data-draw=history] .scatterlayer .trace')")
        seen["verdict"] = page.js("document.querySelector('.verdict').innerText")
        seen["console"] = list(page.console)
        seen["hosts"] = hosts(page)
    return seen


def hosts(page):
    """Every host that the page has asked for anything."""
    asked = [about["request"]["url"] for kind, about in page.events if kind == "Network.requestWillBeSent"]
    return {url.split("/")[2] for url in asked if url.startswith("http")}


def test_a_study_from_the_form_to_its_end(server, watched):
    assert "hpsearch run --name flowers" in watched["preview"]
    assert "trials: 3" in watched["preview"]
    assert "must be a number" in watched["warning"]
    assert watched["focus"] == "Start the study"
    assert "epoch" in watched["live"]
    trial = server.ask("GET", f"/api/studies/flowers/trials/{watched['stopped']}")[1]
    assert (trial["status"], trial["error"]) == ("PRUNED", "stopped on request")
    assert "The best of 3 trials" in watched["verdict"]


def test_nothing_was_wrong_and_no_other_host_was_asked(server, watched):
    assert watched["console"] == []
    assert watched["hosts"] == {f"127.0.0.1:{server.port}"}


def test_the_report_opens_and_can_do_nothing_here(server, watched, browser):
    with browser.page() as page:
        page.go(f"{server.address}/studies/flowers")
        address = page.js("[...document.querySelectorAll('.actions a')].find((a) => a.innerText === 'Report').href")
        page.go(address)
        page.until("document.querySelector('#plot-history .main-svg')")
        assert page.js("document.querySelector('h1').innerText") == "flowers"
        assert page.js("window.origin") == "null", "it is of no origin"
        blocked = page.js("fetch('/api/studies').then(() => 'answered', () => 'refused')")
        assert blocked == "refused"


def test_the_table_sorts_and_filters(server, watched, browser):
    with browser.page() as page:
        page.go(f"{server.address}/studies/flowers")
        page.js("document.querySelector('#trials thead button').focus()")
        page.press("Enter")
        numbers = "[...document.querySelectorAll('#trials tbody tr:not([hidden]) td:first-child')].map((td) => parseInt(td.innerText))"
        assert page.js(numbers) == [0, 1, 2]
        page.press("Enter")
        assert page.js(numbers) == [2, 1, 0]
        choose = "const s = document.querySelector('[data-filter=status]'); s.value = 'PRUNED'; s.dispatchEvent(new Event('input'));"
        page.js(f"(() => {{ {choose} }})()")
        assert page.js(numbers) == [watched["stopped"]]


@pytest.fixture(scope="module")
def raced(server, watched, browser):
    """A comparison of samplers that was started from the form, and watched."""
    with browser.page() as page:
        page.go(f"{server.address}/studies/new")
        page.type("#f-name", "race")
        page.type("#f-trials", "3")
        page.type("#f-compare", "random, tpe")
        page.type("#f-repeats_each", "2")
        page.type("#f-more", "space: {epochs: 2, frozen_layers: 5}")
        page.until("document.querySelector('#preview').innerText.includes('initial')")
        warning = page.js("document.querySelector('#preview .warning').innerText")
        page.type("#f-trials", "6")
        page.until("document.querySelector('#preview .fine')")
        preview = page.js("document.querySelector('#preview').innerText")
        page.js("document.querySelector('#new button').click()")
        page.until("location.pathname === '/studies/race'")
        page.until("document.querySelector('[data-draw=race] .scatterlayer .trace')")
        page.until("document.querySelector('.is-done')", 300)
        seen = page.js("[...document.querySelectorAll('tbody tr')].map((row) => row.cells[0].innerText)"), list(page.console)
    return warning, preview, *seen


def test_a_comparison_from_the_form_to_its_end(server, raced):
    warning, preview, studies, console = raced
    assert "the 5 initial trials are more than the 3 trials" in warning
    assert "hpsearch compare --samplers random,tpe --repeats 2 --name race" in preview
    assert sorted(studies) == ["race-random-r1", "race-random-r2", "race-tpe-r1", "race-tpe-r2"]
    assert console == []


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [1280, 390])
def test_every_page_at_desktop_and_phone_width(server, watched, raced, browser, width, dark):
    best = server.study("flowers")["best"]["number"]
    pages = {"list": "/", "study": "/studies/flowers", "new": "/studies/new", "trial": f"/studies/flowers/trials/{best}"}
    pages |= {"compare": "/compare?study=flowers&study=race", "contest": "/studies/race", "nothing": "/studies/nope"}
    with browser.page(width, dark=dark) as page:
        for name, path in pages.items():
            page.go(server.address + path)
            page.await_plots()
            assert page.js("document.documentElement.scrollWidth") <= width, name
            assert page.js("document.documentElement.lang") == "en"
            assert page.js(
                "[...document.querySelectorAll('input:not([type=hidden]), select, textarea')].every((e) => e.labels.length || e.ariaLabel)"
            ), name
            colour = page.js("getComputedStyle(document.body).backgroundColor")
            assert colour == ("rgb(15, 19, 25)" if dark else "rgb(244, 246, 249)")
            page.shot(f"service-{name}-{width}-{'dark' if dark else 'light'}")
            if name != "nothing":  # whose status is told on the console
                assert page.console == [], name
            page.console.clear()


def test_hostile_names_and_values_do_nothing(server, browser):
    evil = "<img src=x onerror=alert(1)>"
    status, _ = server.ask("POST", "/api/studies", {"study": {"name": "evil", "trials": 1}, "share": evil})
    assert status == 422
    with browser.page() as page:
        page.go(f"{server.address}/studies/{evil.replace('<', '%3C').replace('>', '%3E').replace(' ', '%20')}")
        assert "onerror" in page.js("document.body.innerText")
        assert page.js("document.querySelectorAll('img').length") == 0
        page.go(f"{server.address}/studies/new")
        page.type("#f-name", evil)
        page.until("document.querySelector('#preview .warning')")
        assert page.js("document.querySelectorAll('img').length") == 0
        page.click("#new button")
        page.until("document.querySelector('[role=alert]')")
        assert page.js("document.querySelectorAll('img').length") == 0
        assert page.js("document.querySelector('#f-name').value") == evil


def test_it_works_without_scripts(server, watched, browser):
    with browser.page() as page:
        page.call("Emulation.setScriptExecutionDisabled", value=True)
        page.go(f"{server.address}/studies/flowers")
        page.call("Emulation.setScriptExecutionDisabled", value=False)
        assert page.js("document.querySelectorAll('#trials tbody tr').length") == 3
        assert page.js("document.querySelectorAll('.actions form').length") >= 1


def test_a_study_is_paused_and_cancelled_from_its_page(server, watched, browser):
    server.submit("paused", {"trials": 3, "pruner": "none", "space": {"epochs": 300, "frozen_layers": 5}})
    with browser.page() as page:
        page.go(f"{server.address}/studies/paused")
        page.until("document.querySelector('.is-running')")
        page.until("document.querySelector('#now progress')")
        page.click("form[action$=pause] button")
        page.until("document.querySelector('.is-paused')")
        page.until("document.querySelector('form[action$=resume] button')")
        page.js("window.confirm = () => true")
        page.click("form[action$=cancel] button")
        page.until("document.querySelector('.is-cancelled')")
        assert page.console == []
