#!/bin/bash
# Record the captures of this directory again: real servers, real clients, a network of our own.
#
#     sudo ./record.sh            # into this directory
#     sudo ./record.sh DIRECTORY  # elsewhere
#
# Theory. The script starts itself again in new network, mount and pid namespaces. In there it
# builds five named network namespaces, joined by veth pairs:
#
#     client ──c0────r0── resolver ──u0──[ bridge in switch ]──a0── auth     knotd: root, TLD, zones
#     192.0.2.2   192.0.2.1      198.51.100.1               └──b0── second   named
#     2001:db8:1::2      ::1     2001:db8:53::1
#
# The resolver (unbound) is also the router, so that the client can ask authoritative servers
# itself. 203.0.113.0/24 and 2001:db8:dead::/48 are a black hole behind auth. From client to auth
# run four more links: VLAN 10 and QinQ 200.30 over a trunk in "switch", a tun link (raw IP) and
# VXLAN 42 over the routed path.
#
# Nothing listens outside, nothing of the host is changed, and teardown cannot be missed: the last
# process of the pid namespace takes every server, device and mount with it, however it dies.
#
# Times, ids, ports and keys are real, so two runs differ in bytes and, by a few frames, in count.
set -Eeuo pipefail

PACKAGES="unbound knot knot-dnsutils bind9 bind9-utils bind9-dnsutils dnsperf
          tcpdump tshark iproute2 ethtool util-linux python3 gzip zstd"
COMMANDS="unbound knotd kdig named dnssec-signzone dig nsupdate dnsperf
          tcpdump tshark mergecap ip ethtool unshare python3 gzip zstd"

HERE=$(cd "$(dirname "$0")" && pwd)
RECIPE=$HERE/recipe
export PATH=$PATH:/usr/sbin:/sbin

die() { echo "record.sh: $*" >&2; exit 1; }

if [ -z "${GAZER_RECORDING:-}" ]; then
    [ "$(id -u)" = 0 ] || die "namespaces need root: run it with sudo"
    for command in $COMMANDS; do
        command -v "$command" >/dev/null || die "no $command here: apt-get install" $PACKAGES
    done
    OUT=$(mkdir -p "${1:-$HERE}" && cd "${1:-$HERE}" && pwd)
    WORK=$(mktemp -d)
    # The servers may still be writing when a signal ends us: try until the directory is gone.
    trap 'until rm -rf "$WORK" 2>/dev/null; do sleep 0.1; done' EXIT
    export GAZER_RECORDING=$WORK
    unshare --net --mount --pid --fork --kill-child --mount-proc "$0" "$OUT" &
    namespace=$!
    trap 'kill -KILL $namespace; exit 130' INT TERM
    wait $namespace
    exit
fi

OUT=$1
WORK=$GAZER_RECORDING
trap 'echo "record.sh: line $LINENO failed" >&2' ERR
mkdir -p /run/netns
mount -t tmpfs tmpfs /run/netns
cd "$WORK"

# ---- tools -------------------------------------------------------------------------------------

# Started with & a function is a shell of its own: where $! is used, "ip netns exec" stands instead.
in_ns() { local ns=$1; shift; ip netns exec "$ns" "$@"; }
client() { in_ns client "$@"; }

wait_until() { # SECONDS WHAT COMMAND...: try until the command succeeds
    local end=$((SECONDS + $1)) what=$2
    shift 2
    until "$@" >/dev/null 2>&1; do
        [ $SECONDS -lt $end ] || die "gave up waiting for $what (logs: $(tail -n 3 ./*.log))"
        sleep 0.05
    done
}

answers() { in_ns "$1" kdig +timeout=1 +retry=0 "@$2" "$3" SOA | grep -q "status: NOERROR"; }
ask() { client kdig +timeout=2 +retry=0 +noidn "$@" >>answers.log 2>&1 || true; }
bind_ask() { client dig +time=2 +tries=1 "$@" >>answers.log 2>&1 || true; }

RECORDING=()
record() { # FILE NAMESPACE DEVICE [OPTION...]: start a tcpdump and wait until it listens
    local file=$1 ns=$2 device=$3
    shift 3
    ip netns exec "$ns" tcpdump -Z root -i "$device" -s 65535 -U --immediate-mode -w "$file" "$@" \
        2>"$file.log" &
    RECORDING+=("$!:$file")
    wait_until 5 "tcpdump on $device" grep -q "listening on" "$file.log"
}

settled() { local size; size=$(stat -c %s "$1"); sleep 0.3; [ "$size" = "$(stat -c %s "$1")" ]; }

stop() { # end all tcpdumps, each once its file has stopped to grow
    local entry pid file
    for entry in "${RECORDING[@]}"; do
        pid=${entry%%:*} file=${entry#*:}
        wait_until 10 "$file to settle" settled "$file"
        kill -TERM "$pid"
        wait "$pid" || true
        grep -q "^0 packets dropped by kernel" "$file.log" || die "$file: the kernel dropped frames"
        cp "$file" "$OUT/$file"
    done
    RECORDING=()
}

frames_at_least() { # FILE COUNT FILTER
    [ "$(tcpdump -r "$1" "$3" 2>/dev/null | wc -l)" -ge "$2" ]
}

# ---- the network -------------------------------------------------------------------------------

as_on_a_wire() { # NS DEV: no offloads: checksums are filled in, no frame is larger than the MTU
    local feature
    in_ns "$1" ethtool -K "$2" tx off >/dev/null 2>&1 || die "cannot switch off tx offload on $2"
    for feature in tso gso gro; do   # gone with tx on most devices, fixed off on some
        in_ns "$1" ethtool -K "$2" $feature off >/dev/null 2>&1 || true
    done
}
link() { # NS_A DEV_A NS_B DEV_B: a veth pair
    ip -n "$1" link add "$2" type veth peer name "$4" netns "$3"
    as_on_a_wire "$1" "$2"
    as_on_a_wire "$3" "$4"
    ip -n "$1" link set "$2" up
    ip -n "$3" link set "$4" up
}
address() { # NS DEV ADDRESS...
    local ns=$1 device=$2 one
    shift 2
    for one in "$@"; do
        case $one in
            *:*) ip -n "$ns" addr add "$one" dev "$device" nodad ;;
            *) ip -n "$ns" addr add "$one" dev "$device" ;;
        esac
    done
}

for ns in client resolver auth second switch; do
    ip netns add "$ns"
    ip -n "$ns" link set lo up
    in_ns "$ns" sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1
done
link client c0 resolver r0
link resolver u0 switch ru
link auth a0 switch ra
link second b0 switch rb
ip -n switch link add bridge type bridge
for port in ru ra rb; do ip -n switch link set "$port" master bridge; done
ip -n switch link set bridge up
address client c0 192.0.2.2/24 2001:db8:1::2/64
address resolver r0 192.0.2.1/24 2001:db8:1::1/64
address resolver u0 198.51.100.1/24 2001:db8:53::1/64
address auth a0 198.51.100.10/24 198.51.100.20/24 198.51.100.30/24 \
    2001:db8:53::10/64 2001:db8:53::20/64 2001:db8:53::30/64
address second b0 198.51.100.40/24 2001:db8:53::40/64
ip -n client route add default via 192.0.2.1
ip -n client route add default via 2001:db8:1::1
ip -n resolver route add 203.0.113.0/24 via 198.51.100.30
ip -n resolver route add 2001:db8:dead::/48 via 2001:db8:53::30
ip -n auth route add blackhole 203.0.113.0/24
ip -n auth route add blackhole 2001:db8:dead::/48
for ns in auth second; do
    ip -n "$ns" route add default via 198.51.100.1
    ip -n "$ns" route add default via 2001:db8:53::1
done

link client v10 switch sc10
link client q30 switch sc30
link auth v10 switch sa10
link auth q30 switch sa30
link switch trunk switch trunk2
ip -n switch link set trunk mtu 1508    # a full frame with two tags must pass
ip -n switch link set trunk2 mtu 1508
address client v10 10.10.0.1/24 2001:db8:10::1/64
address auth v10 10.10.0.2/24 2001:db8:10::2/64
address client q30 10.30.0.1/24 2001:db8:30::1/64
address auth q30 10.30.0.2/24 2001:db8:30::2/64
ip netns exec switch python3 "$RECIPE/links.py" vlan trunk trunk2 \
    10:sc10:sa10 200.30:sc30:sa30 >vlan.ready 2>vlan.log &
VLAN_PID=$!
python3 "$RECIPE/links.py" tun tunc tuna >tun.ready 2>tun.log &
TUN_PID=$!
wait_until 5 "the VLAN switches" grep -q ready vlan.ready
wait_until 5 "the tun link" grep -q ready tun.ready
ip link set tunc netns client
ip link set tuna netns auth
ip -n client link set tunc up
ip -n auth link set tuna up
address client tunc 10.50.0.1/24 2001:db8:50::1/64
address auth tuna 10.50.0.2/24 2001:db8:50::2/64
ip -n client link add vx42 type vxlan id 42 dstport 4789 local 192.0.2.2 remote 198.51.100.30
ip -n auth link add vx42 type vxlan id 42 dstport 4789 local 198.51.100.30 remote 192.0.2.2
for ns in client auth; do
    as_on_a_wire "$ns" vx42
    ip -n "$ns" link set vx42 up
done
address client vx42 10.42.0.1/24 2001:db8:42::1/64
address auth vx42 10.42.0.2/24 2001:db8:42::2/64

# ---- zones, signed from the leaves to the root ---------------------------------------------------

mkdir keys wrong sets zones
cp "$RECIPE"/zones/*.zone zones/
sign() { # ORIGIN FILE ALGORITHM [OPTION...]
    local origin=$1 file=$2 algorithm=$3
    shift 3
    dnssec-keygen -q -K keys -a "$algorithm" "$origin" >/dev/null 2>&1
    dnssec-keygen -q -K keys -a "$algorithm" -f KSK "$origin" >/dev/null 2>&1
    (cd sets && dnssec-signzone -S -g -K ../keys -d . -o "$origin" -f "../zones/$file.signed" "$@" \
        "../zones/$file.zone") >>sign.log 2>&1 || die "cannot sign $origin: $(tail -n 3 sign.log)"
}
sign shop.example. shop.example ECDSAP256SHA256
sign hashed.example. hashed.example ED25519 -3 AABBCCDD -H 5
sign bogus.example. bogus.example ECDSAP256SHA256
stranger=$(dnssec-keygen -q -K wrong -a ECDSAP256SHA256 -f KSK bogus.example. 2>/dev/null)
dnssec-dsfromkey -2 "wrong/$stranger.key" >sets/dsset-bogus.example.
sign example. example RSASHA256 -3 - -H 0 -A
sign . root ECDSAP256SHA256

# ---- servers -----------------------------------------------------------------------------------

TSIG=hmac-sha256:recorder:$(printf 'only for test captures, no secret' | base64)

knot() { # NAME NSID ADDRESS4 ADDRESS6 EXTRA_LISTEN; stdin: ORIGIN FILE [KEY: VALUE]
    mkdir "run-$1"
    {
        sed -e "s|@NAME@|$1|g; s|@NSID@|$2|g; s|@LISTEN@|$3, $4$5|; s|@WORK@|$WORK|g" \
            -e "s|@SECRET@|${TSIG##*:}|" "$RECIPE/knot.conf"
        awk '{ print "  - domain: " $1 "\n    file: " $2; if (NF > 2) print "    " $3, $4 }'
    } >"$1.conf"
    ip netns exec auth knotd -c "$WORK/$1.conf" >"$1.log" 2>&1 &
    printf '%s' $! >"$1.pid"
}
knot root root-a 198.51.100.10 2001:db8:53::10 "" <<END
. root.signed
END
knot tld tld-a 198.51.100.20 2001:db8:53::20 "" <<END
example. example.signed
END
knot zones zones-a 198.51.100.30 2001:db8:53::30 \
    ", 10.10.0.2, 2001:db8:10::2, 10.30.0.2, 2001:db8:30::2, 10.50.0.2, 2001:db8:50::2, \
10.42.0.2, 2001:db8:42::2" <<END
shop.example. shop.example.signed notify: zones-b
hashed.example. hashed.example.signed
bogus.example. bogus.example.signed
names.example. names.example.zone
2.0.192.in-addr.arpa. reverse4.zone
8.b.d.0.1.0.0.2.ip6.arpa. reverse6.zone
dyn.example. dyn.secondary master: zones-b
END
mkdir named
sed -e "s|@WORK@|$WORK|g; s|@SECRET@|${TSIG##*:}|" "$RECIPE/named.conf" >named.conf
sed -e "s|@WORK@|$WORK|g" "$RECIPE/unbound.conf" >unbound.conf

for at in "198.51.100.10 ." "198.51.100.20 example." \
    198.51.100.30\ {shop,hashed,bogus,names}.example. \
    198.51.100.30\ {2.0.192.in-addr,8.b.d.0.1.0.0.2.ip6}.arpa.; do
    wait_until 20 "knotd at $at" answers auth "${at% *}" "${at#* }"
done

# ---- what is recorded --------------------------------------------------------------------------

A=198.51.100.30 A6=2001:db8:53::30 B=198.51.100.40 B6=2001:db8:53::40
R=192.0.2.1 R6=2001:db8:1::1

echo "transfers.pcap: a secondary starts; AXFR, IXFR, NOTIFY, UPDATE, TSIG" >&2
record transfers.pcap auth a0 port 53
ip netns exec second named -g -c "$WORK/named.conf" >named.log 2>&1 &
wait_until 20 "named" answers second $B rare.example.
wait_until 20 "the first AXFR" grep -q "zone shop.example/IN: transferred serial" named.log
wait_until 20 "AXFR to knotd" answers auth $A dyn.example.
serial() { in_ns auth kdig +short "@$A" dyn.example SOA | grep -q "hostmaster.example. $1 "; }
for step in "2 host3" "3 host4"; do
    printf 'server %s\nzone dyn.example.\nprereq nxdomain %s.dyn.example.
update add %s.dyn.example. 60 IN A 192.0.2.233\nupdate delete host1.dyn.example. A\nsend\n' \
        $B "${step#* }" "${step#* }" | in_ns auth nsupdate -y "$TSIG"
    wait_until 20 "IXFR to serial ${step% *}" serial "${step% *}"
done
printf 'server %s\nzone dyn.example.\nupdate add no.dyn.example. 60 IN A 192.0.2.9\nsend\n' \
    $B | in_ns auth nsupdate >>answers.log 2>&1 || true   # without a key: REFUSED
in_ns auth kdig +timeout=2 -t IXFR=1 dyn.example @$B >>answers.log
in_ns auth kdig +timeout=2 -y "$TSIG" -t AXFR dyn.example @$B6 >>answers.log
in_ns auth kdig +timeout=2 -t NOTIFY=7 shop.example @$B >>answers.log
stop

echo "resolver.pcap and recursion.pcap: a validating resolver, seen from both sides" >&2
ip netns exec resolver unbound -d -c "$WORK/unbound.conf" >unbound.log 2>&1 &
printf '%s' $! >unbound.pid
wait_until 20 "unbound" answers resolver $R localhost.
record resolver.pcap client c0
record recursion.pcap resolver u0
ask @$R shop.example A
ask @$R6 shop.example AAAA
ask +dnssec +nsid +cookie @$R www.shop.example A
ask +dnssec +nsid @$R6 www.shop.example AAAA
ask @$R old.shop.example DNAME
ask +dnssec @$R www.old.shop.example A
ask @$R shop.example HTTPS
ask +dnssec @$R6 svc.shop.example HTTPS
ask @$R _dns.shop.example SVCB
ask @$R shop.example MX shop.example TXT shop.example CAA shop.example NS
ask @$R _sip._tcp.shop.example SRV sip.shop.example NAPTR
ask @$R6 _443._tcp.www2.shop.example TLSA host.shop.example SSHFP
ask @$R -x 192.0.2.80 -x 192.0.2.129 -x 2001:db8:1::80
ask +dnssec @$R nothing.shop.example A
ask +dnssec @$R6 nothing.hashed.example AAAA
ask +dnssec @$R a.b.wild.shop.example A x.star.hashed.example A
ask @$R nothing.example A nothing A
ask @$R secret.hashed.example A
ask +dnssec +bufsize=1232 @$R www.bogus.example A
ask +cd +bufsize=1232 @$R www.bogus.example A
ask +subnet=203.0.113.0/24 @$R api.shop.example A
ask +subnet=2001:db8:beef::/48 @$R6 api.shop.example AAAA
ask +dnssec @$R example DNSKEY shop.example DS
ask +tcp +dnssec @$R . DNSKEY
ask @$R "mIxEd.CaSe.names.example" A 'dot\.inside.names.example' A
ask @$R unknown.rare.example TYPE65280
ask @$R large.shop.example TXT
bind_ask @$R +norecurse www.shop.example A
bind_ask @$R api.shop.example ANY
client kdig +timeout=4 +retry=0 @$R www.dead.example A >>answers.log 2>&1 || true
python3 - >perf.txt <<'END'
"""Names with a Zipf-like share: rank k is asked 40/k times; one in eight does not exist."""
names = ["www.shop.example A", "shop.example A", "api.shop.example A", "www.shop.example AAAA",
         "shop.example HTTPS", "mx1.shop.example A", "nx-%d.shop.example A",
         "api.shop.example AAAA", "shop.example MX", "pop.hashed.example A",
         "80.2.0.192.in-addr.arpa PTR", "www2.shop.example A"]
asked = [(hash_, name) for rank, name in enumerate(names, 1)
         for hash_ in ((rank * 7919 + n * 104729) % 1009 for n in range(max(1, 40 // rank)))]
for number, (_order, name) in enumerate(sorted(asked)):
    print(name % number if "%d" in name else name)
END
client dnsperf -s $R -d perf.txt -n 1 -c 4 -q 8 -e >>answers.log 2>&1
client dnsperf -s $R6 -f inet6 -d perf.txt -l 1 -Q 40 -c 2 -D >>answers.log 2>&1
stop

echo "authoritative.pcap: asked without a resolver; DNSSEC, EDNS options, refusals" >&2
record authoritative.pcap client c0
for server in $A $A6 $B; do
    ask +dnssec +nsid "@$server" shop.example SOA shop.example DNSKEY
    ask +dnssec "@$server" nothing.shop.example A empty.nonterminal.deep.shop.example AAAA
done
ask +dnssec @$A shop.example NSEC www.shop.example RRSIG a.wild.shop.example TXT
ask +dnssec @$A6 hashed.example NSEC3PARAM nothing.hashed.example A x.star.hashed.example AAAA
ask +dnssec @$A6 deep.down.hashed.example A
ask +dnssec @198.51.100.20 shop.example DS dyn.example DS nothing.example A www.shop.example A
ask +dnssec @198.51.100.10 . DNSKEY example DS nothing A www.shop.example A
ask +cookie @$A shop.example A
ask +cookie=0123456789abcdef0011223344556677 @$B rare.example SOA
ask +cookie +badcookie @$B6 shop.example MX
ask +subnet=192.0.2.0/24 @$A api.shop.example A
ask +subnet=2001:db8:aa::/48 @$A6 api.shop.example A
ask +subnet=0.0.0.0/0 @$A api.shop.example A
ask +padding=128 @$A api.shop.example A
ask +expire @$B shop.example SOA
ask +ednsopt=65001:deadbeef @$A shop.example A
ask +ednsopt=10:00 @$B rare.example A
bind_ask +keepalive +tcp @$B rare.example SOA
bind_ask +edns=1 +noednsnegotiation @$A shop.example A
bind_ask +edns=1 +noednsnegotiation @$B rare.example A
bind_ask +ednsflags=0x4001 @$B rare.example A
bind_ask +opcode=STATUS @$A shop.example A
bind_ask +opcode=STATUS @$B rare.example A
bind_ask +opcode=IQUERY +header-only @$B
bind_ask +header-only @$A
bind_ask +header-only @$B
bind_ask -c HS @$B rare.example A
ask @$A elsewhere.test A
ask @$B elsewhere.test A
ask +tcp @$B6 elsewhere.test A
ask @$A -c CH version.bind TXT -c CH id.server TXT
ask @$B -c CH hostname.bind TXT
ask @$A shop.example ANY
ask @$B rare.example ANY
ask @$A +aa +ad +cd +z shop.example A
ask @$A www.shop.example A old.shop.example DNAME x.old.shop.example A
ask @$A _nothing._udp.shop.example SRV
ask @$A farm.shop.example A
stop

echo "types.pcap and names.pcap: each type that a server can load; names that need escapes" >&2
record types.pcap client c0
awk '/^[a-z]/ && $2 == "IN" && !seen[$1]++ { print $1, $3 }' zones/rare.example.zone >rare.txt
while read -r owner type <&3; do bind_ask @$B "$owner.rare.example" "$type"; done 3<rare.txt
stop
record names.pcap client c0
awk '/ IN / && $1 != "@" { print $1, $3 }' zones/names.example.zone >names.txt
while read -r owner type <&3; do ask @$A "$owner.names.example" "$type"; done 3<names.txt
ask @$A6 'DOT\.INSIDE.Names.EXAMPLE' A 'not\.there\032\255.names.example' TXT
stop

echo "tcp.pcap: truncation, pipelining, out of order, transfers, resets" >&2
record tcp.pcap client c0
ask @$A large.shop.example TXT
ask +bufsize=1232 @$A6 big.shop.example TXT
ask +tcp @$A huge.shop.example TXT
ask +tcp +keepopen @$A6 shop.example A www.shop.example A api.shop.example A nothing.shop.example A
client kdig +timeout=2 @$A shop.example AXFR >>answers.log
client kdig +timeout=2 @$B6 rare.example AXFR >>answers.log
head -n 40 perf.txt >few.txt
client dnsperf -m tcp -s $R -d few.txt -n 1 -c 2 -q 10 -O suppress=timeout >>answers.log 2>&1
client dnsperf -m tcp -s $R6 -f inet6 -d few.txt -n 1 -c 1 -q 10 >>answers.log 2>&1
# Names not yet in the resolver's cache between names that are: their answers come later.
printf '%s A\n' {sip1,api,sip2,www2,d01.lists,api}.shop.example >order.txt
client dnsperf -m tcp -s $R -d order.txt -n 1 -c 1 -q 10 >>answers.log 2>&1
ask +tcp @198.51.100.1 shop.example A   # nobody listens there: RST
stop

echo "fragments.pcap: answers larger than the MTU" >&2
record fragments.pcap client c0
for server in $A $A6 $B $B6; do
    ask +bufsize=4096 "@$server" large.shop.example TXT
    ask +bufsize=4096 +dnssec "@$server" big.shop.example TXT
done
stop

echo "lossy.pcap: no server, no answer, repeated queries, late and double answers" >&2
record lossy.pcap client c0
client kdig +timeout=1 +retry=2 @203.0.113.53 www.dead.example A >>answers.log 2>&1 || true
client kdig +timeout=1 +retry=0 @2001:db8:dead::53 www.dead.example AAAA >>answers.log 2>&1 || true
client kdig +tcp +timeout=1 +retry=0 @203.0.113.53 www.dead.example A >>answers.log 2>&1 || true
ask @198.51.100.1 shop.example A        # port unreachable: ICMP carries a copy of the query
client dnsperf -s 203.0.113.53 -d few.txt -n 1 -q 10 -t 1 -l 1 >>answers.log 2>&1 || true
# The stub resolver of libc repeats on the same socket with the same id. The server is stopped
# until the repeats are on the wire, then answers each copy.
printf 'nameserver %s\noptions timeout:1 attempts:4\n' $R >resolv.conf
mount --bind resolv.conf "$(readlink -f /etc/resolv.conf)"
kill -STOP "$(cat unbound.pid)"
ip netns exec client getent -s dns ahosts www.shop.example >>answers.log 2>&1 &
waiting=$!
wait_until 10 "repeated queries" frames_at_least lossy.pcap 4 "src 192.0.2.2 and dst $R and udp"
kill -CONT "$(cat unbound.pid)"
wait $waiting || true
kill -STOP "$(cat zones.pid)"
ip netns exec client dig +time=1 +tries=3 @$A api.shop.example A >>answers.log 2>&1 &
waiting=$!
wait_until 10 "repeated queries" frames_at_least lossy.pcap 2 "dst $A and udp"
kill -CONT "$(cat zones.pid)"
wait $waiting || true
stop

echo "vlan.pcap, vxlan.pcap, raw-ip.pcap: the same questions over other links" >&2
some_questions() { # ADDRESS4 ADDRESS6
    ask "@$1" shop.example A
    ask +dnssec "@$2" www.shop.example AAAA
    ask "@$2" nothing.hashed.example A
    ask +tcp "@$1" shop.example MX
    ask +bufsize=4096 "@$1" large.shop.example TXT
}
record vlan.pcap switch trunk
some_questions 10.10.0.2 2001:db8:10::2
some_questions 10.30.0.2 2001:db8:30::2
stop
record vxlan.pcap client c0
some_questions 10.42.0.2 2001:db8:42::2
stop
record raw-ip.pcap client tunc
some_questions 10.50.0.2 2001:db8:50::2
stop

echo "any-sll2.pcap, any-sll1.pcap: the any device of the router, which sees all twice" >&2
record any-sll2.pcap resolver any -y LINUX_SLL2
record any-sll1.pcap resolver any -y LINUX_SLL
some_questions $A $A6
ask @$R6 api.shop.example A
stop

echo "ns-timestamps.pcap, snaplen.pcap: nanoseconds; frames cut at 96 octets" >&2
record ns-timestamps.pcap client c0 --time-stamp-precision=nano
record snaplen.pcap client c0 -s 96
some_questions $A $A6
client dnsperf -s $R -d few.txt -n 1 -c 2 -q 4 >>answers.log 2>&1
stop

kill -0 $VLAN_PID $TUN_PID || die "a link broke while recording: $(cat vlan.log tun.log)"

# ---- made from the recordings --------------------------------------------------------------------

cd "$OUT"
mergecap -w mixed.pcapng ns-timestamps.pcap any-sll2.pcap raw-ip.pcap vlan.pcap snaplen.pcap
python3 "$RECIPE/anonymous_pcapng.py" mixed.pcapng
gzip -9 -n -k -f vlan.pcap
zstd -q -19 -f vlan.pcap -o vlan.pcap.zst
for file in *.pcap *.pcapng *.gz *.zst; do
    frames=$(tshark -r "$file" 2>/dev/null | wc -l)
    printf '%-22s %6d frames %8d bytes\n' "$file" "$frames" "$(stat -c %s "$file")"
done
