"""`utsuwa completion`: scripts for completion in shells, which use `utsuwa __complete`."""

from __future__ import annotations

from utsuwa.cli.errors import UsageError
from utsuwa.cli.parsing.command import Command

TYPE_CHECKING = False
if TYPE_CHECKING:
    from utsuwa.cli.parsing.flags import Flags
    from utsuwa.cli.session import Session

_BASH = """\
# bash completion of utsuwa: source it, or save it as /usr/share/bash-completion/completions/utsuwa
_utsuwa() {
    local line=${COMP_LINE:0:COMP_POINT} words word
    read -ra words <<<"$line"
    [[ $line == *[[:space:]] ]] && words+=("")
    word=${words[-1]}
    mapfile -t COMPREPLY < <(utsuwa __complete "${words[@]:1}" 2>/dev/null)
    # bash splits words at : and =, so remove everything up to the last one.
    if [[ $word == *[:=]* && $COMP_WORDBREAKS == *[:=]* ]]; then
        COMPREPLY=("${COMPREPLY[@]#"${word%"${word##*[:=]}"}"}")
    fi
    [[ ${#COMPREPLY[@]} -eq 1 && ${COMPREPLY[0]} == *[:=] ]] && compopt -o nospace
    return 0
}
complete -o default -F _utsuwa utsuwa
"""
_ZSH = """\
#compdef utsuwa
# zsh completion of utsuwa: save it as _utsuwa in a directory of $fpath, or source it after compinit
_utsuwa() {
    local -a found open
    found=("${(@f)$(utsuwa __complete "${(@Q)words[2,CURRENT]}" 2>/dev/null)}")
    found=("${(@)found:#}")
    open=("${(@M)found:#*[:=]}")
    found=("${(@)found:#*[:=]}")
    if (( ${#found} + ${#open} )); then
        (( ${#found} )) && compadd -Q -- "${found[@]}"
        (( ${#open} )) && compadd -Q -S '' -- "${open[@]}"
        return 0
    fi
    _files
}
# As a file in $fpath, this is the body of the function when it is first called.
if [[ ${funcstack[1]} == _utsuwa ]]; then
    _utsuwa "$@"
else
    compdef _utsuwa utsuwa
fi
"""
_FISH = """\
# fish completion of utsuwa: save it as ~/.config/fish/completions/utsuwa.fish
function __utsuwa_complete
    set -l word (commandline -ct)
    set -l words (commandline -opc)
    set -l found (utsuwa __complete $words[2..-1] "$word" 2>/dev/null)
    if set -q found[1]
        printf '%s\\n' $found
    else
        __fish_complete_path "$word"
    end
end
complete -c utsuwa -f -a '(__utsuwa_complete)'
"""
_SCRIPTS = {"bash": _BASH, "zsh": _ZSH, "fish": _FISH}


def _run(session: Session, arguments: list[str], _flags: Flags) -> None:
    shell = arguments[0]
    if shell not in _SCRIPTS:
        raise UsageError(f"Unknown shell {shell!r}: use one of {', '.join(_SCRIPTS)}")
    session.write(_SCRIPTS[shell])


COMMAND = Command(
    "completion",
    "Print the completion script of a shell",
    _run,
    args="<shell>",
    complete=(tuple(_SCRIPTS),),
    example=("source <(utsuwa completion bash)", "Enable completion of commands, flags and names."),
)
