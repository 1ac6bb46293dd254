"""The page as a browser sees it: nothing to fetch, nothing to run, nothing too wide."""

import re
import shutil
import subprocess
from pathlib import Path

from fake_run import write_run
from test_report_page import read

from ideal_jax.report import write_report

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PROBE = """<script>
const wide = [...document.querySelectorAll("body *")].filter(
  e => e.getBoundingClientRect().right > innerWidth + 1 && !e.closest(".scroll, pre, .hidden"));
document.title = JSON.stringify({
  width: document.documentElement.scrollWidth,
  view: innerWidth,
  wide: wide.map(e => e.tagName),
  charts: [...document.querySelectorAll("svg")].filter(
    e => e.checkVisibility()).every(e => e.getBoundingClientRect().height > 40),
  fetched: performance.getEntriesByType("resource").length,
});
</script>"""


def browse(browser: str, profile: Path, page: Path, width: int, height: int, *flags: str):
    """Runs a headless browser once on a local file."""
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr"]
    command += ["--disable-background-networking", "--hide-scrollbars", "--disable-dev-shm-usage"]
    command += [f"--user-data-dir={profile}", f"--window-size={width},{height}", *flags]
    return subprocess.run(
        [*command, page.as_uri()], capture_output=True, text=True, timeout=120, check=True
    )


def probe(browser: str, tmp_path: Path, page: Path, width: int, height: int) -> str:
    """What `PROBE` sees in a copy of the page shown ``width`` pixels wide.

    A browser's window may have a smallest width, so the copy sits in a frame of its own.
    """
    source = page.read_text(encoding="utf-8")
    source = re.sub("<meta http-equiv=[^>]*>", "", source)  # the policy forbids scripts
    source = source.replace("</body>", PROBE + "</body>")
    inner, outer = tmp_path / "inner.html", tmp_path / "outer.html"
    inner.write_text(source, encoding="utf-8")
    outer.write_text(
        f'<iframe src="inner.html" width="{width}" height="{height}" style="border:0"'
        ' onload="document.title = this.contentDocument.title"></iframe>'
    )
    profile = tmp_path / f"profile{width}"
    flags = ("--allow-file-access-from-files", "--virtual-time-budget=4000", "--dump-dom")
    result = browse(browser, profile, outer, 1400, 1000, *flags)
    assert "CONSOLE" not in result.stderr
    title = re.search("<title>(.*?)</title>", result.stdout, re.S)
    assert title, "the probe has run"
    return title[1]


def check_in_browser(browser: str, tmp_path: Path, page: Path) -> None:
    for width, height in ((390, 844), (1280, 900)):
        seen = probe(browser, tmp_path, page, width, height)
        assert f'"width":{width},"view":{width},"wide":[],"charts":true,"fetched":0' in seen
        image = tmp_path / f"{width}.png"
        flags = (f"--screenshot={image}", "--blink-settings=preferredColorScheme=0")
        result = browse(browser, tmp_path / f"plain{width}", page, width, height, *flags)
        assert "CONSOLE" not in result.stderr
        assert image.stat().st_size > 10_000


def test_page_opens_offline_and_fits_phone_and_desktop(tmp_path):
    long = [f"a domain with quite a long name {j}" for j in range(9)]
    page = write_report(write_run(tmp_path / "run", [*long, "w" * 60], updates=3))
    read(tmp_path / "run")  # no script, no foreign address, no style from elsewhere
    source = page.read_text(encoding="utf-8")
    assert not re.search("https?://", source)
    assert "<script" not in source
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found:
        check_in_browser(found, tmp_path, page)
