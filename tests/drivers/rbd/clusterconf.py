"""The ceph.conf of the tests' cluster."""

from __future__ import annotations

SETTINGS = """\
[global]
fsid = {fsid}
mon_host = {address}
public_addr = {address}
cluster_addr = {address}
auth_cluster_required = cephx
auth_service_required = cephx
auth_client_required = cephx
run_dir = {directory}
admin_socket = {directory}/$name.$pid.asok
pid_file =
crash_dir = {directory}/crash
keyring = {directory}/keyring
log_file = {directory}/$name.log
log_to_stderr = false
err_to_stderr = true
mon_cluster_log_to_file = false
osd_pool_default_size = {osds}
osd_pool_default_min_size = {fewest}
osd_pool_default_pg_num = {placement_groups}
osd_pool_default_pg_autoscale_mode = off
osd_crush_chooseleaf_type = 0
mon_allow_pool_size_one = true
mon_allow_pool_delete = true

[mon]
mon_data = {directory}/mon
# The tests' file system may be rather full.
mon_data_avail_crit = 0
mon_data_avail_warn = 0
# Changes of the maps are not collected for a second.
paxos_propose_interval = 0.05
# An OSD that hangs is down when one other says so, however often it was down before.
mon_osd_min_down_reporters = 1
mon_osd_adjust_heartbeat_grace = false
mon_osd_adjust_down_out_interval = false
osd_heartbeat_grace = {grace_seconds}

[osd]
osd_data = {directory}/$name
osd_heartbeat_grace = {grace_seconds}
osd_heartbeat_interval = 2
osd_objectstore = bluestore
bluestore_block_size = {store_bytes}
bluestore_cache_autotune = false
bluestore_cache_size = 67108864
osd_memory_target = 939524096
osd_op_num_shards = 2
osd_op_num_threads_per_shard = 2
# A placement group answers while the lease lasts that its OSDs give it: this times the grace. If
# the only OSD is stopped for longer, the group may never answer again (Ceph 16.2.15).
osd_pool_default_read_lease_ratio = {lease_ratio}
# It says sooner whether it is full.
osd_mon_report_interval = 1
# It must not come to be killed for being slow on a busy machine.
osd_op_thread_suicide_timeout = 0
debug_rocksdb = 1/1

[client]
log_file = {directory}/$name.log
err_to_stderr = false
admin_socket =
"""
