"""Keys of a terminal, one by one: works over SSH, needs no display and no rights.

The terminal is put into character mode without echo; Ctrl-C still interrupts. It is restored on every exit, that by
``kill -9`` included: a small child waits for this process' end and restores it then.
"""

from __future__ import annotations

import os
import select
import subprocess
import termios
import time
import tty as _tty

from real_robot.core.types import Button, DeviceError

BUTTONS = {
    "e": Button.ENABLE,  # and DISABLE, in turns
    " ": Button.ESTOP,
    "x": Button.RECOVER,
    "\r": Button.START,
    "\n": Button.START,
    "\x7f": Button.STOP,  # backspace
    "\x08": Button.STOP,
    "1": Button.SUCCESS,
    "0": Button.FAILURE,
    "\\": Button.DISCARD,
    "Q": Button.QUIT,
}
HELP = (
    "e enable/disable | space E-STOP | x recover | enter START | backspace STOP | 1 success | 0 failure | \\ discard"
    " | Q quit"
)
_CALM = 0.5  # s within which a repeated key is one that is held
_GUARD = 'trap \'\' INT TERM HUP QUIT TTOU; cat >/dev/null; stty "$0" <"$1"'


class Keys:
    """What is typed at a terminal.

    Args:
        tty: its device.
    """

    def __init__(self, tty: str = "/dev/tty"):
        self.tty = tty
        self.enabled = False
        self._fd = -1
        self._guard: subprocess.Popen | None = None
        self._pressed: dict[Button, float] = {}

    def start(self) -> None:
        """Takes the terminal. Raises DeviceError where there is none."""
        try:
            self._fd = os.open(self.tty, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
            self._saved = termios.tcgetattr(self._fd)
        except (OSError, termios.error) as error:
            self.close()
            raise DeviceError(
                f"keyboard: {self.tty} cannot be opened as a terminal ({error}): run in a terminal (ssh -t), or give"
                " teleop.tty."
            ) from None
        name = os.ttyname(self._fd)
        state = subprocess.run(["stty", "-g"], stdin=self._fd, capture_output=True, text=True).stdout.strip()
        self._guard = subprocess.Popen(["sh", "-c", _GUARD, state, name], stdin=subprocess.PIPE, start_new_session=True)
        _tty.setcbreak(self._fd, termios.TCSANOW)

    def close(self) -> None:
        """Gives the terminal back as it was."""
        if self._guard is not None and self._guard.stdin is not None:
            termios.tcsetattr(self._fd, termios.TCSANOW, self._saved)
            self._guard.stdin.close()
            self._guard.wait()
            self._guard = None
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        self.enabled = False

    def read(self) -> str:
        """What was typed since the last call. Raises DeviceError where the terminal has gone."""
        if self._fd < 0 or not select.select([self._fd], [], [], 0)[0]:
            return ""
        try:
            typed = os.read(self._fd, 1024)
        except BlockingIOError:
            return ""
        except OSError as error:
            raise DeviceError(f"keyboard: {self.tty} cannot be read any more ({error}).") from None
        if not typed:
            raise DeviceError(f"keyboard: the terminal {self.tty} was closed.")
        return typed.decode(errors="ignore")

    def buttons(self, typed: str) -> Button:
        """The buttons among what was ``typed``; a key that is held counts once, but for that of the e-stop."""
        pressed = Button.NONE
        now = time.monotonic()
        for key in typed:
            button = BUTTONS.get(key, Button.NONE)
            if button is Button.NONE:
                continue
            held = now - self._pressed.get(button, -1.0) < _CALM
            self._pressed[button] = now
            if held and button is not Button.ESTOP:
                continue
            if button is Button.ENABLE:
                self.enabled = not self.enabled
                button = Button.ENABLE if self.enabled else Button.DISABLE
            elif button is Button.ESTOP:
                self.enabled = False
            pressed |= button
        return pressed
