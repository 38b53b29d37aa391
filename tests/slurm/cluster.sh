#!/usr/bin/env bash
# A SLURM of one node, everything in one directory:  cluster.sh start|stop DIR
# After "start", clients find it with SLURM_CONF=DIR/slurm.conf. Needs root, slurm-wlm and munge.
set -euo pipefail
action=$1 dir=$2

stop() {
    local name pid
    for name in slurmctld slurmd munged; do
        [ -f "$dir/$name.pid" ] || continue
        pid=$(cat "$dir/$name.pid")
        kill "$pid" 2>/dev/null || true
        for _ in $(seq 50); do kill -0 "$pid" 2>/dev/null || break; sleep 0.1; done
    done
}

port() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }

start() {
    mkdir -p "$dir"/{state,spool,munge,log}
    chmod 700 "$dir/munge"
    head -c 1024 /dev/urandom > "$dir/munge/key"
    chmod 600 "$dir/munge/key"
    munged --force --key-file="$dir/munge/key" --socket="$dir/munge/socket" --pid-file="$dir/munged.pid" \
        --log-file="$dir/log/munged" --seed-file="$dir/munge/seed" --num-threads=2
    local host memory
    host=$(hostname -s)
    memory=$(($(awk '/MemAvailable/ {print $2}' /proc/meminfo) / 1024 / 2))
    cat > "$dir/slurm.conf" <<CONF
ClusterName=sharedmask
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$(port)
SlurmdPort=$(port)
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=$dir/munge/socket
CredType=cred/munge
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool
SlurmctldPidFile=$dir/slurmctld.pid
SlurmdPidFile=$dir/slurmd.pid
SlurmctldLogFile=$dir/log/slurmctld
SlurmdLogFile=$dir/log/slurmd
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
SchedulerParameters=sched_min_interval=100000
ReturnToService=2
MpiDefault=none
SwitchType=switch/none
MailProg=/bin/true
DefMemPerCPU=256
NodeName=$host NodeAddr=127.0.0.1 CPUs=$(nproc) RealMemory=$memory State=UNKNOWN
PartitionName=test Nodes=$host Default=YES MaxTime=INFINITE State=UP
CONF
    export SLURM_CONF="$dir/slurm.conf"
    slurmctld
    slurmd
    for _ in $(seq 100); do
        sinfo --noheader --format=%T 2>/dev/null | grep -qE '^(idle|mixed)$' && return
        sleep 0.2
    done
    echo "slurm did not come up:" >&2
    tail -n 20 "$dir/log/"* >&2
    stop
    exit 1
}

"$action"
