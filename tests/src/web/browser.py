# Drives Chromium over its DevTools protocol: the page as a user sees it. Arguments: the URL, where the screenshot goes, and a key
# where the page has to ask for one.
import base64
import json
import subprocess
import sys
import tempfile
import time
import urllib.request

import websocket

URL, SCREENSHOT, KEY = sys.argv[1], sys.argv[2], (sys.argv[3:] or [None])[0]
DEADLINE = 40
profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
browser = subprocess.Popen(
    ["chromium", "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
     "--disable-background-networking", "--window-size=1200,720", "--remote-debugging-port=9222",
     f"--user-data-dir={profile.name}", "about:blank"],
    stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def until(what, work):
    end = time.monotonic() + DEADLINE
    while time.monotonic() < end:
        try:
            found = work()
            if found:
                return found
        except OSError:
            pass
        time.sleep(0.05)
    raise AssertionError(f"not in time: {what}; the page says {text('document.body.innerText') if page else 'nothing'}")


def target():
    pages = json.load(urllib.request.urlopen("http://127.0.0.1:9222/json"))
    return next((one["webSocketDebuggerUrl"] for one in pages if one["type"] == "page"), None)


class Page:
    def __init__(self, url):
        self.socket = websocket.create_connection(url, suppress_origin=True, timeout=DEADLINE)
        self.number, self.complaints = 0, []

    def call(self, method, **parameters):
        self.number += 1
        self.socket.send(json.dumps({"id": self.number, "method": method, "params": parameters}))
        while True:
            message = json.loads(self.socket.recv())
            if message.get("id") == self.number:
                assert "error" not in message, message
                return message["result"]
            if message["method"] == "Runtime.exceptionThrown":
                self.complaints.append(message["params"]["exceptionDetails"])
            entry = message.get("params", {}).get("entry", {})
            # A refused request is reported too; that one the page is meant to see.
            if entry.get("level") == "error" and "401" not in entry.get("text", ""):
                self.complaints.append(entry)


def text(expression):
    result = page.call("Runtime.evaluate", expression=expression)["result"]
    return result.get("value")


def click(label):
    assert text(f"""(() => {{ const found = document.querySelector('button[aria-label="{label}"]');
        found?.click(); return Boolean(found); }})()"""), f"no button {label}"


def status():
    return text("document.querySelector('#processes tbody tr')?.cells[2].textContent")


page = None
try:
    page = Page(until("the browser starts", target))
    for domain in ["Runtime", "Log", "Page"]:
        page.call(f"{domain}.enable")
    page.call("Page.navigate", url=URL)
    if KEY:
        until("it asks for the key", lambda: text("document.querySelector('#login')?.hidden === false"))
        assert text("document.querySelectorAll('#processes tbody tr').length") == 0, "figures without a key"
        text(f"document.querySelector('#key').value = {json.dumps(KEY)}")
        text("document.querySelector('#login button').click()")
    shown = "getComputedStyle(document.querySelector('#login')).display !== 'none'"
    until("it is live", lambda: text("document.querySelector('#connection')?.textContent") == "live")
    until("the process is online", lambda: status() == "online")
    until("the host is shown", lambda: text("document.querySelectorAll('#host div').length") == 3)
    assert text("document.querySelector('#processes tbody tr').cells[1].textContent") == "web-api"
    assert text(shown) is False, "it asks for a key that it does not need any more"
    click("logs web-api")
    until("its log is shown", lambda: "<b>bold</b>" in (text("document.querySelector('#logs pre').textContent") or ""))
    assert text("document.querySelectorAll('#logs b').length") == 0, "what a process writes was read as HTML"
    until("memory is shown", lambda: "iB" in text("document.querySelector('#processes tbody tr').cells[6].textContent"))
    shot = page.call("Page.captureScreenshot", format="png")["data"]
    open(SCREENSHOT, "wb").write(base64.b64decode(shot))
    click("stop web-api")
    until("it stops", lambda: status() == "stopped")
    click("start web-api")
    until("it starts again", lambda: status() == "online")
    elsewhere = text(f"performance.getEntriesByType('resource').filter((one) => !one.name.startsWith({json.dumps(URL)})"
                     " && !one.name.startsWith('data:')).map((one) => one.name).join(' ')")
    assert elsewhere == "", elsewhere
    assert not page.complaints, page.complaints
    print("content")
finally:
    browser.kill()
    browser.wait()
