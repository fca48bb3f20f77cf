#!/bin/bash
# A Slurm of one node on loopback, for tests: one_node_slurm.sh start FOLDER | stop FOLDER. Needs root and Debian's packages
# slurm-wlm and munge. Afterwards: export SLURM_CONF=FOLDER/slurm.conf
set -eu
what=$1 home=$2 host=$(hostname -s)
if [ "$what" = start ]; then
  mkdir -p "$home"/{state,spool,log} /run/munge
  chown munge:munge /run/munge
  [ -f /etc/munge/munge.key ] || /usr/sbin/mungekey --create
  [ -S /run/munge/munge.socket.2 ] || timeout 10 su -s /bin/sh munge -c /usr/sbin/munged
  cat > "$home/slurm.conf" <<CONF
ClusterName=tests
SlurmctldHost=$host(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
StateSaveLocation=$home/state
SlurmdSpoolDir=$home/spool
SlurmctldPidFile=$home/slurmctld.pid
SlurmdPidFile=$home/slurmd.pid
SlurmctldLogFile=$home/log/slurmctld.log
SlurmdLogFile=$home/log/slurmd.log
SlurmctldPort=${3:-17117}
SlurmdPort=$((${3:-17117} + 1))
MpiDefault=none
JobRequeue=1
SchedulerParameters=sched_interval=1,batch_sched_delay=0
JobAcctGatherType=jobacct_gather/none
NodeName=$host NodeAddr=127.0.0.1 CPUs=$(nproc) State=UNKNOWN
PartitionName=main Nodes=$host Default=YES MaxTime=INFINITE State=UP
CONF
  export SLURM_CONF=$home/slurm.conf
  timeout 10 slurmctld -f "$SLURM_CONF"
  timeout 10 slurmd -f "$SLURM_CONF"
  until=$((SECONDS + 15))
  while [ $SECONDS -lt $until ]; do  # a controller that does not answer lets sinfo wait and ask again for a long time
    timeout 3 sinfo -h -o %t 2>/dev/null | grep -q idle && exit 0
    sleep 0.25
  done
  echo "the node did not come up: see $home/log" >&2
  exit 1
fi
for daemon in slurmd slurmctld; do
  [ -f "$home/$daemon.pid" ] && kill "$(cat "$home/$daemon.pid")" || true
done
