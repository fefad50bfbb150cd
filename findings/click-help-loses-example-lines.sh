#!/bin/bash
# click-man and help2man: manual pages of a click program run the lines of its examples together.
#
# Expected: click's own mark for a paragraph whose lines stay as they are (\b) is kept, at least by the
# generator that is made for click; its NAME line holds the command's first sentence; and it has a page
# for each command. Seen (click-man 0.6.0, click 8.5.1, help2man 1.49.3): both write the lines of such a
# paragraph as a paragraph that is filled. click-man also cuts the text of NAME at 45 characters, and
# writes no page for commands that a group finds by get_command (click's documented way to load them
# late), since it reads the attribute `commands`.
#
# Uses the distribution's python3 with venv, help2man and groff.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-deps click==8.5.1 click-man==0.6.0
cat >"$work/program" <<END
#!$work/venv/bin/python
import click

class Late(click.Group):
    def list_commands(self, ctx):
        return ["late"]
    def get_command(self, ctx, name):
        return click.Command("late", help="Be found late.") if name == "late" else None

@click.group(cls=Late)
def main():
    """Show how the lines of an example come out in a manual page.

    \b
    program first line
    program second line
    """

if __name__ == "__main__":
    main()
END
chmod +x "$work/program"

PYTHONPATH=$work "$work/venv/bin/python" - "$work" <<'END'
import importlib.machinery, importlib.util, sys
from click_man.core import write_man_pages
loader = importlib.machinery.SourceFileLoader("program", f"{sys.argv[1]}/program")
spec = importlib.util.spec_from_loader("program", loader)
module = importlib.util.module_from_spec(spec)
loader.exec_module(module)
write_man_pages("program", module.main, version="1", target_dir=sys.argv[1])
END
help2man --no-info --version-string 1 --name 'an example' --output "$work/help2man.1" "$work/program"

show() { groff -man -Tascii -P-cbou "$1"; }
"$work/program" --help | grep -A1 'first line'
for page in program.1 help2man.1; do
    echo "== $page"
    show "$work/$page" | grep -E 'first line|^ +program - ' || true
    show "$work/$page" | grep -qE 'program first line +program second' || { echo 'the lines are kept'; exit 1; }
done
show "$work/program.1" | grep -qE '^ +program - .*\.\.\.$' || { echo 'NAME is whole'; exit 1; }
[[ ! -e $work/program-late.1 ]] || { echo 'the late command has a page'; exit 1; }
echo "as described: lines run together, NAME is cut, a command is missing"
