# shellcheck shell=sh disable=SC2128,SC3028,SC3054
# Puts `muster` on PATH:  . ./env.sh   (bash, zsh, dash and other POSIX shells). Activates nothing else; harmless to repeat.
# A sourced file learns its own path from bash and zsh; other shells cannot tell, so there it must be sourced from the
# checkout itself. Each shell's syntax is hidden in eval: the others would stop at it.
if [ -n "${BASH_VERSION:-}" ]; then
  muster_env_root=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE:-$0}")" && pwd -P)
elif [ -n "${ZSH_VERSION:-}" ]; then
  eval 'muster_env_root=${${(%):-%x}:A:h}'
else
  muster_env_root=$(pwd -P)
fi
if [ ! -f "$muster_env_root/core/config/experiment.proto" ]; then
  echo "env.sh: $muster_env_root is not a muster checkout; in this shell, cd to the checkout first: cd muster && . ./env.sh" >&2
  unset muster_env_root
  return 1
fi
case ":$PATH:" in
  *":$muster_env_root/build:"*) ;;
  *) PATH=$muster_env_root/build:$PATH; export PATH ;;
esac
[ -x "$muster_env_root/build/muster" ] || echo "env.sh: muster is not built yet: run ./setup.sh" >&2
unset muster_env_root
