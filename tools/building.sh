# To be sourced by scripts that build a program below .setup for benchmarks and tests: how they tell
# what they do, and what cannot be had. The script sets `name`, `what_then` (what is missing without
# the program), and goes to the folder of the project first.
#
#   SCRIPT                 build it, or fail
#   SCRIPT --if-possible   build it, or say why not; exit 0
work=$PWD/.setup
log=$work/$name.log
built=$work/$name
source=$work/$name-source

if_possible=no
case ${1:-} in
'') ;;
--if-possible) if_possible=yes ;;
*)
    printf '%s: error: unknown option: %s\n%s: hint: usage: tools/%s [--if-possible]\n' \
        "$name" "$1" "$name" "$name" >&2
    exit 2
    ;;
esac

say() { printf '%s: %s\n' "$name" "$*"; }

# Also with --if-possible: who presses Ctrl-C does not want what comes next.
trap 'printf "%s: interrupted; run it again\n" "$name" >&2; exit 130' INT TERM HUP

# give_up WHY WHAT-TO-DO
give_up() {
    if [[ $if_possible == yes ]]; then
        say "not built: $1"
        say "$what_then; $2"
        exit 0
    fi
    printf '%s: error: %s\n%s: hint: %s\n' "$name" "$1" "$name" "$2" >&2
    exit 1
}

# Runs a command with its output in the log; shows the end of it where that fails.
logged() {
    local size
    printf '\n== %s\n' "$*" >>"$log"
    size=$(stat -c %s "$log")
    local rc=0
    "$@" >>"$log" 2>&1 || rc=$?
    ((rc == 0)) || tail -c +"$((size + 1))" "$log" | tail -n 15 | sed 's/^/    /' >&2
    return "$rc"
}

# Whether version $1 is $2 or newer.
at_least() { [[ $(printf '%s\n' "$2" "$1" | sort -V | head -n 1) == "$2" ]]; }

# One build at a time; a second run of the same script does nothing. The mark that says "complete"
# is written last, and tells by which script, and with what else ($*).
begin() {
    mkdir -p "$work"
    exec 8>"$work/$name.lock"
    flock -w 1800 8 || give_up "another build has not ended within 30 minutes" \
        "fuser $work/$name.lock"
    key=$({ printf '%s\n' "$(uname -m)" "$@"; cat "tools/$name"; } | sha256sum | cut -d ' ' -f 1)
    if [[ -f $built/.complete && $(<"$built/.complete") == "$key" ]]; then
        say "nothing to be done"
        exit 0
    fi
    : >"$log"
    rm -rf "$source" "$built.new"
    mkdir -p "$source"
}

# What stands in $built.new is what was wanted.
complete() {
    printf '%s\n' "$key" >"$built.new/.complete"
    rm -rf "$built" "$source"
    mv "$built.new" "$built"
    say "ready: done in $SECONDS s"
}
