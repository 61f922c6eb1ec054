# Shared by the scripts beside it, which run in the root of the repository. POSIX sh.

say() { printf '%s\n' "$*" >&2; }

die() { say "$@"; exit 1; }

minimum=$(sed -n 's/^min_python *= *//p' settings.ini)

# find_python NAME...: the first of $PYTHON and the names that is new enough, as a full path
find_python() {
    for name in ${PYTHON:-} "$@"; do
        "$name" - "$minimum" 2>/dev/null <<'PY' && return 0
import sys
if sys.version_info < tuple(map(int, sys.argv[1].split("."))): sys.exit(1)
print(getattr(sys, "_base_executable", None) or sys.executable)
PY
    done
    return 1
}

# apt_install PACKAGE...: true when the packages were installed; false where there is no apt or no right to use it
apt_install() {
    command -v apt-get >/dev/null || return 1
    if [ "$(id -u)" = 0 ]; then root=; elif sudo -n true 2>/dev/null; then root='sudo -n'; else return 1; fi
    say "Installing $* with apt-get ..."
    $root apt-get -qq -o DPkg::Lock::Timeout=300 update >&2 || say "apt-get update failed; trying with the lists that are there."
    $root env DEBIAN_FRONTEND=noninteractive apt-get -qq -y -o DPkg::Lock::Timeout=300 install --no-install-recommends "$@" >/dev/null
}

# usable FOLDER: a virtual environment is there, works, and was not moved or copied from elsewhere (its commands would use the old place)
usable() { "$1/bin/pip" --version >/dev/null 2>&1 && [ "$(cat "$1/.place" 2>/dev/null || pwd)" = "$(pwd)" ]; }

# make_venv FOLDER PYTHON: a virtual environment, kept if there is a usable one
make_venv() {
    usable "$1" && return 0
    if ! "$2" -c 'import ensurepip, venv' 2>/dev/null; then
        package=python$("$2" -c 'import sys; print("%d.%d" % sys.version_info[:2])')-venv
        apt_install "$package" || die "$2 cannot make virtual environments. On Debian or Ubuntu run" \
            "'apt-get install $package' as root (elsewhere: install the venv and ensurepip modules), then this command again."
    fi
    "$2" -m venv --clear "$1"
    pwd >"$1/.place"
}

# pip_install FOLDER ARGUMENT...: says nothing unless something is wrong
pip_install() {
    venv=$1; shift
    PIP_DISABLE_PIP_VERSION_CHECK=1 "$venv/bin/pip" install -qq --no-input "$@" </dev/null
}

# stamp WORD...: changes when the declaration of the package, the place or the words change
stamp() { { cat settings.ini setup.py pyproject.toml; pwd; echo "$*"; } | cksum; }
