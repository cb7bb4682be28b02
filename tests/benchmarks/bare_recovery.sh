# shellcheck shell=bash
# SPDX-License-Identifier: GPL-3.0-or-later
#
# The yardstick: the whole recovery of playbooks/complete_system_failure.yml as one hand-optimised shell script, for this one Titan (profile guide),
# this one server and the happy path. Never use it for a real recovery: it knows no second source, no older restore point, no rollback and no report.
#
# bare_controller.py sends it through one ssh into `bash -s`, followed by its parameters as assignments (AGE_IDENTITY, URL_*, SHA_*, ...; nothing secret
# is ever on a command line), then `recover`, and `resume` once the old server is known to be halted or dead.
#
# What stands for what; none of the collection's steps or proofs is left out of the happy path:
#   preflight: restore_point_info, sources      bare_controller.py: both stores read, every manifest's seal opened, addresses signed
#   preflight: preflight_info                   preflight: system, Python, root, disk, memory, clock, blank server, no registry in reach
#   trading_halt on the failed server           bare_controller.py: `halt` over ssh, beside everything else; `resume` waits for its outcome
#   trading_halt on the replacement             halt: latch with a generation, synced; then no process of the user, or the halt call, or a stop
#   provision: server_baseline                  provision: owner record, user, directories, kernel settings, limits; bootstrap: age and zstd, hash checked
#   redis_restore: redis_stage                  redis_fetch, redis_prove: fetch, SHA-256, age, zstd, size, sync; scratch Redis with sanitized payloads, key
#                                               counts of each database, expired keys, canary
#   dependencies: offline_bundle                bundle, redis_packages, node_packages, late_packages: hash, PM2 tree, dpkg with no service started, Redis first
#   config_restore: tree_restore                config: hash, every JSON file parses, old files kept, renamed into place (with the unit of PM2)
#   app_restore: tree_restore                   app: the same, and the link
#   redis_restore: redis_swap                   redis_swap: configuration agrees, AOF layout and manifest, start timeout, old data kept, start, PING, then
#                                               key counts, canary, role, no eviction, a write; a new base, which validate waits for
#   services: component_start                   pm2_daemon (unit enabled, started, no dump resurrected), level: latch checked, pm2 start of each level, gated
#                                               on health of each of its components; pm2_save
#   validate: pm2_health                        stable: PM2's list at the start and at the end of the same window, states, restarts, owner of each process
#                                               and of each port, health of each
#   validate: validate_info                     validate: Redis role, keys, canary, persistence, eviction; configuration parses; logs writable; memory, disk;
#                                               websockets, exchanges, halted state, each within the same time
#   trading_halt: resume                        resume: generation compared, latch removed, resume call, confirmed by its effect; record on the server
# Not here, because they cost the happy path nothing: other sources, older restore points, a second run, check mode, deadlines for each step.

set -Eeuo pipefail
umask 022

STATE=/var/lib/titan-dr
LATCH=$STATE/halt
HOME_DIR=/opt/titan
DATA=/var/lib/redis
CONF=/etc/redis/redis.conf
UNIT=pm2-titan.service
CONFIG_PATHS=("$CONF" "$HOME_DIR/config" "/etc/systemd/system/$UNIT" "$STATE/config.bundle")
PORTS=(6379 3000 3001 3002 3003 3004)
BRAIN=http://127.0.0.1:3000
PM2=(setpriv --reuid titan --regid titan --init-groups env -i "HOME=$HOME_DIR" USER=titan "PM2_HOME=$HOME_DIR/.pm2" PM2_DISCRETE_MODE=true LANG=C.UTF-8
  PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin)
PM2_PROGRAM=/opt/pm2/node_modules/pm2/bin/pm2
export PATH=$STATE/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C.UTF-8

die() { echo "bare recovery: $*" >&2; exit 1; }
trap 'echo "bare recovery: line $LINENO: $BASH_COMMAND ended with $?" >&2' ERR

# What still runs beside a step that failed ends with it.
trap 'jobs -p | xargs --no-run-if-empty kill 2>/dev/null' EXIT

# Run a step and say when it began and ended.
timed() {
  local name=$1 began=$EPOCHREALTIME
  shift
  "$@"
  echo "@ $name $began $EPOCHREALTIME"
}

# Wait for a condition for so many seconds.
within() {
  local end=$((EPOCHSECONDS + $1)) pause=$2
  shift 2
  until "$@"; do
    ((EPOCHSECONDS < end)) || die "not in time: $*"
    sleep "$pause"
  done
}

# --- small programs in the standard library: a blank server has no curl and no jq ---

# address on descriptor 3 -> standard output; fails unless the SHA-256 is the one that is expected
FETCH='
import hashlib, os, sys, urllib.request
url = os.fdopen(3).read().strip()
digest = hashlib.sha256()
with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=10) as reply:
    while block := reply.read(1 << 20):
        digest.update(block)
        sys.stdout.buffer.write(block)
sys.stdout.buffer.flush()
sys.exit(digest.hexdigest() != sys.argv[1] and "SHA-256 is not the one of the manifest")
'

# INFO on standard input, EXPECTED (the manifest) in the environment, the canary as found
COMPARE='
import json, os, sys
want, live, canary = json.loads(os.environ["EXPECTED"]), sys.argv[1] == "live", json.loads(sys.argv[2])
info = dict(line.strip().split(":", 1) for line in sys.stdin if ":" in line)
have = {}
for name, text in info.items():
    if name.startswith("db") and text.startswith("keys="):
        have[name] = {key: int(value) for key, value in (part.split("=") for part in text.split(","))}
none = {"keys": 0, "expires": 0}
for name in {*have, *want["keyspace"]}:
    one, other = want["keyspace"].get(name, none), have.get(name, none)
    if not one["keys"] - one["expires"] <= other["keys"] <= one["keys"]:
        sys.exit(f"{name}: {other} found, {one} in the manifest")
expired = int(info.get("rdb_last_load_keys_expired", 0)) + int(info["expired_keys"])
total = sum(one["keys"] for one in want["keyspace"].values()) + want["expired"]
if not live and sum(one["keys"] for one in have.values()) + expired != total:
    sys.exit(f"{have} and {expired} expired, {total} in the manifest")
if want["canary"] and (canary["seq"] < want["canary"]["seq"] if live else canary["seq"] != want["canary"]["seq"]):
    sys.exit(f"canary {canary}, not that of the manifest")
if live and (info["role"] != "master" or info["evicted_keys"] != "0"):
    sys.exit("role %(role)s, %(evicted_keys)s keys evicted" % info)
'

# seconds, slowest answer in ms, then for each check one argument: url path=value path=value...
ASK='
import concurrent.futures, json, sys, time, urllib.error, urllib.request
end, slowest = time.monotonic() + float(sys.argv[1]), float(sys.argv[2])
opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
def once(url, wanted):
    began = time.monotonic()
    try:
        with opener.open(url, timeout=3) as reply:
            document = json.load(reply)
    except (OSError, ValueError) as error:
        return f"{url}: {error}"
    took = (time.monotonic() - began) * 1000
    for item in wanted:
        path, _, value = item.partition("=")
        found = document
        for part in path.split("."):
            found = found.get(part) if isinstance(found, dict) else None
        if json.dumps(found).strip(chr(34)) != value:
            return f"{url}: {path} is {found!r}"
    return f"{url}: {took:.0f} ms" if took > slowest else ""
def check(text):
    url, *wanted = text.split()
    while complaint := once(url, wanted):
        if time.monotonic() > end:
            return complaint
        time.sleep(0.05)
    return ""
with concurrent.futures.ThreadPoolExecutor(8) as pool:
    bad = [text for text in pool.map(check, sys.argv[3:]) if text]
sys.exit("; ".join(bad) or 0)
'

CALL='
import sys, urllib.error, urllib.request
request = urllib.request.Request(sys.argv[1], data=sys.argv[2].encode(), headers={"Content-Type": "application/json"}, method="POST")
try:
    urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=5).read()
except urllib.error.HTTPError as error:
    print(f"{sys.argv[1]}: {error}", file=sys.stderr)
'

# each JSON file below the paths parses, no key twice; each path is there
PARSE='
import json, os, sys
def pairs(items):
    found = dict(items)
    if len(found) != len(items):
        raise ValueError("a key occurs twice")
    return found
for path in sys.argv[1:]:
    if not os.path.lexists(path):
        sys.exit(f"{path} is missing")
    for name in [path] if not os.path.isdir(path) else [os.path.join(folder, item) for folder, _, files in os.walk(path) for item in files]:
        with open(name, "rb") as handle:
            content = handle.read()
        if name.endswith(".json") and "/node_modules/" not in name:
            json.loads(content, object_pairs_hook=pairs)
'

# PM2 list on standard input -> name pid restarts, sorted; fails unless exactly the expected ones are online
LIST='
import json, sys
text = sys.stdin.read()
apps = json.loads(text[text.index("[{"):])
bad = [app["name"] for app in apps if app["pm2_env"]["status"] != "online"]
if bad or sorted(app["name"] for app in apps) != sorted(sys.argv[1:]):
    sys.exit(f"not online or not expected: {bad}, {len(apps)} applications")
for app in sorted(apps, key=lambda item: item["name"]):
    print(app["name"], app["pid"], app["pm2_env"]["restart_time"])
'

python() { python3 -I -S -c "$@"; }

# --- steps ---

fetch() {
  local url=URL_$1 sha=SHA_$1
  python "$FETCH" "${!sha}" 3< <(printf '%s' "${!url}")
}

opened() { age --decrypt --identity <(printf '%s\n' "$AGE_IDENTITY"); }

registry_in_reach() {
  local host
  for host in $(sed -nE 's,^[^#]*https?://([^/: ]+).*,\1,p' /etc/apt/sources.list /etc/apt/sources.list.d/* 2>/dev/null | sort -u); do
    hosts+=("$host")
    if timeout 1 bash -c '</dev/tcp/$0/80' "$host" 2>/dev/null; then return 0; fi
  done
  return 1
}

preflight() {
  local place=$DATA free available hosts=() port used
  # shellcheck source=/dev/null
  [[ $(. /etc/os-release && echo "$ID $VERSION_ID") == "$SERVER_OS" && $(uname -m) == "$SERVER_ARCHITECTURE" ]] || die "another system"
  python 'import sys; sys.exit(sys.version_info < (3, 11))' || die "Python is too old"
  ((EUID == 0)) || die "not root"
  while [[ ! -d $place ]]; do place=${place%/*}; place=${place:-/}; done
  free=$(df --output=avail -B1 "$place" | tail -n 1)
  ((free >= DUMP_SIZE * 3 + (1 << 30))) || die "$free bytes free"
  available=$(awk '/^MemAvailable/ {printf "%d", $2 * 1024}' /proc/meminfo)
  ((available >= USED_MEMORY * 12 / 10)) || die "$available bytes of memory available"
  ((EPOCHSECONDS - CONTROLLER_TIME <= 5 && CONTROLLER_TIME - EPOCHSECONDS <= 5)) || die "the clock is off"
  [[ ! -e $STATE/owner.json ]] || die "somebody claimed this server"
  [[ ! -d $DATA || -z $(ls -A "$DATA") ]] || die "$DATA is not empty"
  used=$(ss -Hltn | awk '{print $4}')
  for port in "${PORTS[@]}"; do [[ ! $used =~ :$port($|[[:space:]]) ]] || die "port $port is in use"; done
  if registry_in_reach; then die "a package registry can be reached"; fi
  ((${#hosts[@]} > 0)) || die "no package source is configured: nothing was tried"
}

# Also sent alone to the failed server.
halt() {
  local generation=1
  mkdir -p "$STATE"
  if [[ ! -e $LATCH ]]; then
    if [[ -e $LATCH.generation ]]; then generation=$(($(<"$LATCH.generation") + 1)); fi
    echo "$generation" >"$LATCH.generation.new"
    sync "$LATCH.generation.new"
    mv "$LATCH.generation.new" "$LATCH.generation"
    printf '{"generation": %d, "reason": "complete_system_failure", "run_id": "%s", "since": %s}\n' "$generation" "$RUN_ID" "$EPOCHREALTIME" >"$LATCH.new"
    sync "$LATCH.new"
    mv "$LATCH.new" "$LATCH"
    sync "$STATE"
  fi
  GENERATION=$(sed -E 's/.*"generation": ([0-9]+).*/\1/' "$LATCH")
  if pgrep -u titan >/dev/null 2>&1; then
    python "$CALL" $BRAIN/emergency/halt '{"reason": "recovery"}' && python "$ASK" 5 5000 "$BRAIN/health/trading trading=false" || {
      systemctl stop $UNIT
      pkill -KILL -u titan || [[ $? == 1 ]]
      within 5 0.1 no_process_of_titan
    }
  fi
}

no_process_of_titan() { ! pgrep -u titan >/dev/null; }

provision() {
  install -d -m 0755 "$STATE"
  install -d -m 0700 "$STATE/stage"
  printf '{"environment_id": "%s", "run_id": "%s"}\n' "$ENVIRONMENT_ID" "$RUN_ID" >"$STATE/owner.json"
  useradd --system --user-group --home-dir $HOME_DIR --no-create-home --shell /bin/bash titan
  install -d -m 0755 -o titan -g titan $HOME_DIR $HOME_DIR/config $HOME_DIR/logs $HOME_DIR/releases
  printf '%s\n' 'net.core.netdev_max_backlog = 5000' 'net.core.somaxconn = 1024' 'vm.overcommit_memory = 1' 'vm.swappiness = 10' >/etc/sysctl.d/90-titan.conf
  # In a container the kernel belongs to somebody else; then the settings count at the next boot.
  sysctl --quiet --load /etc/sysctl.d/90-titan.conf 2>/dev/null || echo "bare recovery: kernel settings take effect at the next boot" >&2
  install -d /etc/security/limits.d
  printf 'titan - %s\n' 'nofile 65536' 'nproc 32768' >/etc/security/limits.d/90-titan.conf
}

bootstrap() {
  mkdir "$STATE/bin.stage"
  fetch bootstrap | tar --extract --gzip --directory "$STATE/bin.stage"
  mv "$STATE/bin.stage" "$STATE/bin"
}

redis_fetch() {
  mkdir -m 0700 "$STAGE"
  fetch redis | opened | zstd --decompress --stdout --quiet >"$STAGE/base.rdb"
  sync "$STAGE/base.rdb"
  [[ $(stat -c %s "$STAGE/base.rdb") == "$DUMP_SIZE" ]] || die "the dump has another size than in the manifest"
}

scratch() { redis-cli -s "$STAGE/scratch.sock" "$@"; }
scratch_answers() {
  kill -0 "$1" || die "the scratch Redis ended: $(tail -n 3 "$STAGE/scratch.log")"
  [[ $(scratch ping 2>/dev/null) == PONG ]]
}

redis_prove() {
  local pid
  chown redis:redis "$STAGE" "$STAGE/base.rdb"
  (trap - ERR && exec setpriv --reuid redis --regid redis --clear-groups redis-server - >/dev/null 2>&1) <<END &
port 0
unixsocket $STAGE/scratch.sock
dir $STAGE
dbfilename base.rdb
save ""
appendonly no
databases $DATABASES
sanitize-dump-payload yes
rdbchecksum yes
logfile $STAGE/scratch.log
daemonize no
END
  pid=$!
  within 600 0.05 scratch_answers "$pid"
  scratch info | python "$COMPARE" scratch "$(scratch -n "$CANARY_DB" get "$CANARY_KEY")"
  kill -KILL "$pid"
  wait "$pid" || [[ $? == 137 ]]
  rm -f "$STAGE/scratch.sock" "$STAGE/scratch.log"
}

redis_branch() {
  timed redis_fetch redis_fetch
  timed redis_waits_for_package within 600 0.05 test -e "$STATE/bundle/redis-installed"
  timed redis_prove redis_prove
}

bundle() {
  mkdir -m 0700 "$STATE/bundle.stage"
  fetch bundle | opened | tar --extract --directory "$STATE/bundle.stage"
  [[ -d $STATE/bundle.stage/debs && -d $STATE/bundle.stage/pm2 ]] || die "the bundle holds no packages or no PM2"
  mv "$STATE/bundle.stage/pm2" /opt/pm2
  mv "$STATE/bundle.stage" "$STATE/bundle"
}

packages() {
  DEBIAN_FRONTEND=noninteractive dpkg --install --force-unsafe-io --force-confold "$@" >/dev/null
}

redis_packages() {
  local debs=$STATE/bundle/debs
  packages "$debs"/redis-server_*.deb "$debs"/redis-tools_*.deb "$debs"/libatomic1_*.deb "$debs"/libjemalloc2_*.deb "$debs"/liblzf1_*.deb
  : >"$STATE/bundle/redis-installed"
}

# What PM2 and the services need, or the rest.
other_packages() {
  local node=() late=() name
  for name in "$STATE"/bundle/debs/*.deb; do
    case ${name##*/} in
      redis-* | libatomic1_* | libjemalloc2_* | liblzf1_*) ;;
      git_* | git-man_* | libcurl3-gnutls_* | liberror-perl_* | libldap-* | libpsl5_* | librtmp1_* | libsasl2-* | libssh2-1_* | age_* | zstd_*) late+=("$name") ;;
      *) node+=("$name") ;;
    esac
  done
  if [[ $1 == node ]]; then packages "${node[@]}"; else packages "${late[@]}"; fi
}

# Rename what was unpacked into place and keep what was there.
swap_in() {
  local stage=$1 path
  shift
  for path in "$@"; do
    mkdir -p "${path%/*}"
    mv "$stage$path" "$path.stage-$RUN_ID"
    if [[ -e $path ]]; then mv "$path" "$path.before-$RUN_ID"; fi
    mv "$path.stage-$RUN_ID" "$path"
  done
}

unpacked() {
  mkdir -m 0700 "$2"
  fetch "$1" | opened | zstd --decompress --stdout --quiet | tar --extract --same-owner --same-permissions --directory "$2"
}

# After the package: the files belong to the user redis.
config() {
  local stage=$STATE/stage/config
  unpacked config "$stage"
  python "$PARSE" "${CONFIG_PATHS[@]/#/$stage}"
  swap_in "$stage" "${CONFIG_PATHS[@]}"
  rm -r "$stage"
}

app() {
  local stage=$STATE/stage/app
  unpacked app "$stage"
  python "$PARSE" "$stage$RELEASE"
  swap_in "$stage" "$RELEASE"
  ln -s "$RELEASE" $HOME_DIR/current.new
  mv -T $HOME_DIR/current.new $HOME_DIR/current
  rm -r "$stage"
}

directive() { awk -v name="$1" '$1 == name {value = $2} END {gsub(/"/, "", value); print value}' $CONF; }

redis_ready() { [[ $(redis-cli ping 2>/dev/null) == PONG ]]; }

redis_swap() {
  local live=$STAGE/live folder base size
  [[ $(directive dir) == "$DATA" && $(directive appendonly) == yes && $(directive port) == 6379 ]] || die "$CONF is for another server"
  folder=$live/$(directive appenddirname)
  base=$(directive appendfilename).1.base.rdb
  size=$(stat -c %s "$STAGE/base.rdb")
  install -d -m 0750 -o redis -g redis "$live" "$folder"
  mv "$STAGE/base.rdb" "$folder/$base"
  echo "file $base seq 1 type b" >"$folder/$(directive appendfilename).manifest"
  sync "$folder"/*.manifest
  chown -R redis:redis "$live"
  mkdir -p /etc/systemd/system/redis-server.service.d
  printf '[Service]\nTimeoutStartSec=%d\n' $((size < 1 << 29 ? 90 : 60 * (1 + size / (1 << 30)) < 90 ? 90 : 60 * (1 + size / (1 << 30)))) \
    >/etc/systemd/system/redis-server.service.d/titan-dr.conf
  systemctl daemon-reload
  systemctl stop redis-server
  if [[ -e $DATA ]]; then mv "$DATA" "$DATA.before-$RUN_ID"; fi
  mv "$live" "$DATA"
  rm -r "$STAGE"
  systemctl start redis-server
  within 600 0.05 redis_ready
  redis-cli info | python "$COMPARE" live "$(redis-cli -n "$CANARY_DB" get "$CANARY_KEY")"
  [[ $(redis-cli set titan:dr:write-probe 1 PX 1) == OK ]] || die "Redis takes no write"
  redis-cli bgrewriteaof >/dev/null
}

new_base_written() { redis-cli info persistence | grep -q '^aof_rewrite_in_progress:0'; }

pm2_daemon() {
  rm -f $HOME_DIR/.pm2/dump.pm2 $HOME_DIR/.pm2/dump.pm2.bak
  systemctl daemon-reload
  systemctl enable --quiet $UNIT
  systemctl restart $UNIT
}

pm2() { (umask 077 && cd $HOME_DIR && exec "${PM2[@]}" "$PM2_PROGRAM" "$@"); }

HEALTHY_BRAIN="$BRAIN/health status=healthy dependencies.redis=connected"
HEALTHY_SHARED="http://127.0.0.1:3001/health status=healthy dependencies.redis=connected"
HEALTHY_PHASES=("http://127.0.0.1:3002/health status=healthy" "http://127.0.0.1:3003/health status=healthy" "http://127.0.0.1:3004/health status=healthy")

level() {
  local names=$1 how_many=$2
  shift 2
  [[ -f $LATCH ]] || die "the latch was taken away"
  PM2+=("PM2_CONCURRENT_ACTIONS=$how_many")
  pm2 start $HOME_DIR/config/ecosystem.config.js --only "$names" --silent >/dev/null
  python "$ASK" 30 3000 "$@"
}

pm2_save() {
  pm2 save --silent >/dev/null
  [[ -s $HOME_DIR/.pm2/dump.pm2 ]] || die "PM2 saved nothing"
  chmod 0600 $HOME_DIR/.pm2/dump.pm2
}

pm2_list() { pm2 jlist --silent | python "$LIST" titan-brain titan-shared titan-phase1 titan-phase2 titan-phase3; }

age_of() { awk -v hertz="$(getconf CLK_TCK)" 'NR == FNR {up = $1; next} {sub(/.*\) /, ""); printf "%.2f", up - $20 / hertz}' /proc/uptime "/proc/$1/stat"; }

# What ran at the start of the window runs at its end. Processes that have been up for as long already need no waiting for.
stable() {
  local before after pid age youngest=$WINDOW port listening
  before=$(pm2_list)
  for pid in $(awk '{print $2}' <<<"$before"); do
    age=$(age_of "$pid")
    youngest=$(awk -v a="$age" -v b="$youngest" 'BEGIN {print a < b ? a : b}')
  done
  sleep "$(awk -v w="$WINDOW" -v y="$youngest" 'BEGIN {print w - y}')"
  after=$(pm2_list)
  [[ $before == "$after" ]] || die "a process restarted: $before; $after"
  # As their owner: root in a container may not look into the processes of others.
  listening=$(setpriv --reuid titan --regid titan --init-groups ss -Hltnp)
  set -- 3000 3002 3003 3004 3001 # in the order of the names
  while read -r _ pid _; do
    port=$1
    shift
    [[ $(stat -c %U "/proc/$pid") == titan ]] || die "process $pid belongs to somebody else"
    grep -Eq ":$port .*pid=$pid," <<<"$listening" || die "process $pid does not listen on port $port"
  done <<<"$after"
  python "$ASK" 5 5000 "$HEALTHY_BRAIN" "$HEALTHY_SHARED" "${HEALTHY_PHASES[@]}"
}

validate() {
  local info probes used memory
  python "$ASK" 20 1000 "$BRAIN/health/websockets status=connected" "$BRAIN/health/exchanges binance=connected bybit=connected" \
    "$BRAIN/health/trading trading=false" &
  probes=$!
  within 20 0.1 new_base_written
  info=$(redis-cli info)
  local wanted
  for wanted in role:master loading:0 aof_enabled:1 aof_last_write_status:ok aof_last_bgrewrite_status:ok rdb_last_bgsave_status:ok evicted_keys:0; do
    grep -q "^$wanted" <<<"$info" || die "Redis: not $wanted"
  done
  grep -q '^db[0-9]*:keys=' <<<"$info" || die "Redis is empty"
  [[ $(redis-cli -n "$CANARY_DB" get "$CANARY_KEY") == *seq* ]] || die "the canary is missing"
  python "$PARSE" "${CONFIG_PATHS[@]:0:3}"
  [[ $(stat -c '%U' $HOME_DIR/logs) == titan && $(stat -c %a $HOME_DIR/logs) == 7* ]] || die "the logs cannot be written"
  used=$(df --output=pcent "$DATA" | tail -n 1 | tr -d ' %')
  memory=$(awk '/^MemTotal/ {all = $2} /^MemAvailable/ {free = $2} END {printf "%d", 100 * (1 - free / all)}' /proc/meminfo)
  ((used <= 90 && memory <= 85)) || die "disk $used %, memory $memory %"
  wait "$probes"
}

# --- the course ---

recover() {
  local redis_job app_job config_job late_job daemon_job
  STAGE=$DATA.stage-$RUN_ID
  timed preflight preflight
  timed halt halt
  timed provision provision
  timed bootstrap bootstrap
  redis_branch &
  redis_job=$!
  timed bundle bundle
  # A package must not start its service before the restored configuration is there.
  printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d
  chmod 0755 /usr/sbin/policy-rc.d
  timed redis_packages redis_packages
  timed app app &
  app_job=$!
  timed config config &
  config_job=$!
  timed node_packages other_packages node
  wait "$config_job"
  wait "$app_job"
  timed pm2_daemon pm2_daemon &
  daemon_job=$!
  timed wait_for_proof wait "$redis_job"
  wait "$daemon_job"
  REDISCLI_AUTH=$(directive requirepass)
  export REDISCLI_AUTH
  timed redis_swap redis_swap
  timed level_brain level titan-brain 1 "$HEALTHY_BRAIN"
  timed level_shared level titan-shared 1 "$HEALTHY_SHARED"
  timed level_phases level titan-phase1,titan-phase2,titan-phase3 3 "${HEALTHY_PHASES[@]}"
  timed pm2_save pm2_save
  # The window is idle time: what nothing that trades needs is installed in it.
  timed late_packages other_packages late &
  late_job=$!
  timed stable stable
  wait "$late_job"
  rm /usr/sbin/policy-rc.d
  timed validate validate
}

resume() {
  local began=$EPOCHREALTIME
  [[ $(sed -E 's/.*"generation": ([0-9]+).*/\1/' "$LATCH") == "$GENERATION" ]] || die "somebody halted trading again"
  rm "$LATCH"
  python "$CALL" $BRAIN/emergency/resume '{}'
  python "$ASK" 15 5000 "$BRAIN/health/trading status=operational trading=true"
  echo "@ resume $began $EPOCHREALTIME"
  echo "resumed $EPOCHREALTIME"
  printf '{"environment_id": "%s", "run_id": "%s"}\n' "$ENVIRONMENT_ID" "$RUN_ID" >"$STATE/recovered.json"
}
