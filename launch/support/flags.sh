#!/usr/bin/env bash
# Sourced by the launch scripts: ROOT, `fail` and the reading of flags.

# shellcheck disable=SC2034 # read by the scripts, as COMMAND is
ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)"

fail() { echo "error: launch/${0##*/}: $*" >&2; exit 2; }

# read_flags VALUES SWITCHES "$@": --some-flag=x sets some_flag=x for a name in VALUES, --flag sets flag=yes for one in
# SWITCHES; what stands behind -- is left in COMMAND. --help prints the head of the script.
read_flags() {
  local _values=" $1 " _switches=" $2 " _flag # none may be called as a flag is
  shift 2
  while [ $# -gt 0 ]; do
    _flag="${1#--}" _flag="${_flag%%=*}"
    case "$1" in
      --) shift; break ;;
      --help | -h) sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "$0"; exit 0 ;;
      --*=*) [[ "$_values" == *" $_flag "* ]] || fail "got $1; the command comes after -- (see --help)"
        printf -v "${_flag//-/_}" %s "${1#*=}" ;;
      --*) [[ "$_switches" == *" $_flag "* ]] || fail "got $1; the command comes after -- (see --help)"
        printf -v "${_flag//-/_}" yes ;;
      *) fail "got $1; the command comes after -- (see --help)" ;;
    esac
    shift
  done
  # shellcheck disable=SC2034
  COMMAND=("$@")
}
