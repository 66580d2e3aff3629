#!/usr/bin/env bash
# Sourced by the launch scripts: ROOT, `fail` and the reading of flags.

# shellcheck disable=SC2034 # read by the scripts, as COMMAND is
ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"

fail() { echo "error: launch/$(basename "$0"): $*" >&2; exit 2; }

# read_flags VALUES SWITCHES "$@": --some-flag=x sets some_flag=x for a name in VALUES, --flag sets flag=yes for one in
# SWITCHES; what stands behind -- is left in COMMAND. --help prints the head of the script.
read_flags() {
  local values=" $1 " switches=" $2 " name
  shift 2
  while [ $# -gt 0 ]; do
    name="${1#--}" name="${name%%=*}"
    case "$1" in
      --) shift; break ;;
      --help | -h) sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "$0"; exit 0 ;;
      --*=*) [[ "$values" == *" $name "* ]] || fail "got $1; the command comes after -- (see --help)"
        printf -v "${name//-/_}" %s "${1#*=}" ;;
      --*) [[ "$switches" == *" $name "* ]] || fail "got $1; the command comes after -- (see --help)"
        printf -v "${name//-/_}" yes ;;
      *) fail "got $1; the command comes after -- (see --help)" ;;
    esac
    shift
  done
  # shellcheck disable=SC2034
  COMMAND=("$@")
}
