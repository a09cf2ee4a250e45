"""A mail client made of Python's own smtplib, imaplib and poplib: libraries that know nothing of the pool.

One request (JSON) on standard input, one answer (JSON) on standard output.
"""

import base64
import imaplib
import json
import poplib
import smtplib
import socket
import ssl
import sys
import time

TIMEOUT_S = 30
NAME = "client.test"


def tls(request):
    """Verifies chain and name, as a careful client does."""
    return ssl.create_default_context(cafile=request["ca"])


class NamedSocket:
    """Connects to an address while TLS asks for the name that stands in the certificate."""

    def __init__(self, request):
        self.address = (request["server"], request["port"])
        self.name = request["name"]
        self.context = tls(request)

    def connect(self):
        return socket.create_connection(self.address, TIMEOUT_S)

    def connect_tls(self):
        return self.context.wrap_socket(self.connect(), server_hostname=self.name)


def reply(stage, code, text):
    return {"stage": stage, "code": code, "text": text.decode("utf-8", "replace")}


def send(request):
    """Sends one message; the answer is the reply that decided."""
    content = base64.b64decode(request["content"])
    smtp = smtplib.SMTP(timeout=TIMEOUT_S, local_hostname=NAME)
    code, text = smtp.connect(request["server"], request["port"])
    answer = {"greeting": text.decode("utf-8", "replace"), "refused": []}
    if code != 220:
        return answer | reply("connect", code, text)
    smtp.ehlo()
    if request["tls"]:
        smtp._host = request["name"]
        code, text = smtp.starttls(context=tls(request))
        if code != 220:
            return answer | reply("starttls", code, text)
        smtp.ehlo()
    options = ["BODY=8BITMIME"] if smtp.has_extn("8bitmime") else []
    if request["smtputf8"]:
        smtp.command_encoding = "utf-8"
        options.append("SMTPUTF8")
    code, text = smtp.mail(request["sender"], options)
    if code != 250:
        return answer | reply("mail", code, text)
    accepted = 0
    for recipient in request["recipients"]:
        code, text = smtp.rcpt(recipient)
        if code in (250, 251):
            accepted += 1
        else:
            answer["refused"].append(reply("rcpt", code, text))
    if accepted == 0:
        smtp.quit()
        return answer | answer["refused"][0]
    code, text = smtp.data(content)
    smtp.quit()
    return answer | reply("data", code, text)


class Imap(imaplib.IMAP4):
    def __init__(self, request):
        self.lab = NamedSocket(request)
        self.lab_tls = request["tls"] == "implicit"
        super().__init__(*self.lab.address, timeout=TIMEOUT_S)

    def _create_socket(self, timeout):
        return self.lab.connect_tls() if self.lab_tls else self.lab.connect()


def imap_login(request):
    imap = Imap(request)
    if request["tls"] == "starttls":
        imap.host = request["name"]
        imap.starttls(imap.lab.context)
    user, password = request["user"], request["password"]
    if request["method"] == "plain":
        imap.authenticate("PLAIN", lambda _challenge: f"\0{user}\0{password}".encode())
    else:
        imap.login(user, password)
    return imap


def imap_fetch(request):
    """The message with this mark, if it is there."""
    imap = imap_login(request)
    imap.select("INBOX", readonly=True)
    _, found = imap.search(None, "HEADER", "X-Lab-Mark", f'"{request["mark"]}"')
    numbers = found[0].split()
    content = None
    if numbers:
        _, data = imap.fetch(numbers[-1], "(BODY.PEEK[])")
        content = base64.b64encode(data[0][1]).decode()
    imap.logout()
    return {"count": len(numbers), "content": content, "greeting": imap.welcome.decode()}


class Pop3(poplib.POP3):
    def __init__(self, request):
        self.lab = NamedSocket(request)
        self.lab_tls = request["tls"] == "implicit"
        super().__init__(*self.lab.address, timeout=TIMEOUT_S)

    def _create_socket(self, timeout):
        return self.lab.connect_tls() if self.lab_tls else self.lab.connect()


def pop3_fetch(request):
    pop3 = Pop3(request)
    if request["tls"] == "starttls":
        pop3.host = request["name"]
        pop3.stls(pop3.lab.context)
    pop3.user(request["user"])
    pop3.pass_(request["password"])
    mark = f'X-Lab-Mark: {request["mark"]}'.encode()
    found = []
    for number in range(1, pop3.stat()[0] + 1):
        _, lines, _ = pop3.retr(number)
        if mark in lines:
            found.append(b"\r\n".join(lines) + b"\r\n")
    pop3.quit()
    content = base64.b64encode(found[-1]).decode() if found else None
    return {"count": len(found), "content": content, "greeting": pop3.welcome.decode()}


def connect(request):
    """Opens many connections one after the other, quickly; when did the last one fail?"""
    start = time.monotonic()
    last_failure, failures, attempts = 0.0, 0, 0
    while time.monotonic() - start < request["seconds"]:
        attempts += 1
        try:
            with socket.create_connection((request["server"], request["port"]), 0.2) as connection:
                connection.settimeout(0.5)
                if not connection.recv(100):
                    raise OSError("no greeting")
        except OSError:
            failures += 1
            last_failure = time.monotonic() - start
    return {"attempts": attempts, "failures": failures, "recovered_s": last_failure}


class Noop:
    """A session that asks nothing until it is tried."""

    def __init__(self, imap):
        self.imap = imap

    def works(self):
        return self.imap.noop()[0] == "OK"


class Idle:
    """A session that waits for news by IDLE (RFC 2177), as phones do; imaplib has no command for it."""

    def __init__(self, imap):
        self.imap = imap
        self.begin()

    def begin(self):
        self.tag = self.imap._new_tag()
        self.imap.send(self.tag + b" IDLE\r\n")
        while not self.imap.readline().startswith(b"+"):
            pass

    def works(self):
        self.imap.send(b"DONE\r\n")
        line = self.imap.readline()
        while line and not line.startswith(self.tag):
            line = self.imap.readline()
        if not line.startswith(self.tag + b" OK"):
            return False
        self.begin()
        return True


def hold(request):
    """Logs in many times and keeps the sessions; then answers each line of input by trying all of them."""
    sessions = {}
    for _ in range(request["count"]):
        imap = imap_login(request)
        imap.select("INBOX")
        sessions[imap.sock.getsockname()[1]] = Idle(imap) if request["idle"] else Noop(imap)
    print(json.dumps({"ports": list(sessions)}), flush=True)
    for _line in sys.stdin:
        broken = []
        for port, session in sessions.items():
            try:
                session.imap.sock.settimeout(request["patience_s"])
                if not session.works():
                    broken.append(port)
            except (OSError, imaplib.IMAP4.error):
                broken.append(port)
        for port in broken:
            del sessions[port]
        print(json.dumps({"broken": broken, "alive": len(sessions)}), flush=True)
    return {}


def inject(request):
    """Sends a command in the clear behind the one that starts TLS, in one write; is it answered afterwards?"""
    raw = socket.create_connection((request["server"], request["port"]), TIMEOUT_S)
    raw.recv(4096)
    if request["before"]:
        raw.sendall(request["before"].encode())
        raw.recv(4096)
    raw.sendall(request["upgrade"].encode())
    answer = b""
    while not answer.endswith(b"\n"):
        piece = raw.recv(1)
        if not piece:
            break
        answer += piece
    session = tls(request).wrap_socket(raw, server_hostname=request["name"])
    session.settimeout(0.5)
    try:
        unasked = session.recv(4096)
    except TimeoutError:
        unasked = b""
    session.settimeout(TIMEOUT_S)
    session.sendall(request["after"].encode())
    return {"unasked": unasked.decode(), "answer": session.recv(4096).decode()}


COMMANDS = {"inject": inject, "send": send, "imap": imap_fetch, "pop3": pop3_fetch, "connect": connect, "hold": hold}


def main():
    request = json.loads(sys.stdin.readline())
    try:
        answer = COMMANDS[request["command"]](request)
    except (OSError, imaplib.IMAP4.error, poplib.error_proto, smtplib.SMTPException) as error:
        answer = {"error": f"{type(error).__name__}: {error}"}
    print(json.dumps(answer), flush=True)


main()
