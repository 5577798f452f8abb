"""The kernel values that `tuning.sysctl` may set: which there are, which are gone, and which another key decides.

Facts from the kernel's ip-sysctl, nf_conntrack-sysctl and vm documentation, for the kernels of the supported releases
(4.14 to 6.12). A key that the kernel does not have is ignored at boot without a word (sysctl -e), hence this list.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from ndakit.core.release import Release

_WORDS: Mapping[str, str] = {
    "fs": """
        file-max inotify.max_user_instances inotify.max_user_watches nr_open pipe-max-size protected_hardlinks
        protected_symlinks suid_dumpable
    """,
    "kernel": """
        core_pattern dmesg_restrict kptr_restrict panic panic_on_oops panic_on_warn pid_max printk
        printk_ratelimit printk_ratelimit_burst randomize_va_space sched_autogroup_enabled threads-max
        timer_migration
    """,
    "net.bridge": """
        bridge-nf-call-arptables bridge-nf-call-ip6tables bridge-nf-call-iptables bridge-nf-filter-vlan-tagged
    """,
    "net.core": """
        bpf_jit_enable bpf_jit_harden bpf_jit_kallsyms bpf_jit_limit busy_poll busy_read default_qdisc
        dev_weight dev_weight_rx_bias dev_weight_tx_bias devconf_inherit_init_net fb_tunnels_only_for_init_net
        flow_limit_table_len gro_normal_batch high_order_alloc_disable max_skb_frags mem_pcpu_rsv message_burst
        message_cost netdev_budget netdev_budget_usecs netdev_max_backlog netdev_tstamp_prequeue
        netdev_unregister_timeout_secs optmem_max rmem_default rmem_max rps_sock_flow_entries skb_defer_max
        somaxconn tstamp_allow_data txrehash wmem_default wmem_max xfrm_acq_expires xfrm_aevent_etime
        xfrm_aevent_rseqth xfrm_larval_drop
    """,
    "net.ipv4": """
        fib_multipath_hash_fields fib_multipath_hash_policy fib_multipath_use_neigh fib_notify_on_flag_change
        fib_sync_mem fwmark_reflect icmp_echo_enable_probe icmp_echo_ignore_all icmp_echo_ignore_broadcasts
        icmp_errors_use_inbound_ifaddr icmp_ignore_bogus_error_responses icmp_msgs_burst icmp_msgs_per_sec
        icmp_ratelimit icmp_ratemask igmp_max_memberships igmp_max_msf igmp_qrv inet_peer_maxttl
        inet_peer_minttl inet_peer_threshold ip_autobind_reuse ip_default_ttl ip_dynaddr ip_early_demux
        ip_forward ip_forward_update_priority ip_forward_use_pmtu ip_local_port_range ip_local_reserved_ports
        ip_no_pmtu_disc ip_nonlocal_bind ip_unprivileged_port_start ipfrag_high_thresh ipfrag_low_thresh
        ipfrag_max_dist ipfrag_time ping_group_range raw_l3mdev_accept route.error_burst route.error_cost
        route.min_adv_mss route.min_pmtu route.mtu_expires route.redirect_load route.redirect_number
        route.redirect_silence tcp_abort_on_overflow tcp_allowed_congestion_control tcp_app_win tcp_autocorking
        tcp_backlog_ack_defer tcp_base_mss tcp_challenge_ack_limit tcp_comp_sack_delay_ns tcp_comp_sack_nr
        tcp_comp_sack_slack_ns tcp_congestion_control tcp_dsack tcp_early_demux tcp_ecn tcp_ecn_fallback
        tcp_fastopen tcp_fastopen_blackhole_timeout_sec tcp_fin_timeout tcp_frto tcp_fwmark_accept
        tcp_invalid_ratelimit tcp_keepalive_intvl tcp_keepalive_probes tcp_keepalive_time tcp_l3mdev_accept
        tcp_limit_output_bytes tcp_max_orphans tcp_max_reordering tcp_max_syn_backlog tcp_max_tw_buckets tcp_mem
        tcp_migrate_req tcp_min_rtt_wlen tcp_min_snd_mss tcp_min_tso_segs tcp_moderate_rcvbuf
        tcp_mtu_probe_floor tcp_mtu_probing tcp_no_metrics_save tcp_no_ssthresh_metrics_save tcp_notsent_lowat
        tcp_orphan_retries tcp_pacing_ca_ratio tcp_pacing_ss_ratio tcp_pingpong_thresh tcp_probe_interval
        tcp_probe_threshold tcp_recovery tcp_reflect_tos tcp_reordering tcp_retrans_collapse tcp_retries1
        tcp_retries2 tcp_rfc1337 tcp_rmem tcp_rto_max_ms tcp_rto_min_us tcp_sack tcp_shrink_window
        tcp_slow_start_after_idle tcp_stdurg tcp_syn_linear_timeouts tcp_syn_retries tcp_synack_retries
        tcp_syncookies tcp_thin_linear_timeouts tcp_timestamps tcp_tso_win_divisor tcp_tw_reuse
        tcp_tw_reuse_delay tcp_window_scaling tcp_wmem tcp_workaround_signed_windows udp_early_demux
        udp_l3mdev_accept udp_mem udp_rmem_min udp_wmem_min xfrm4_gc_thresh
    """,
    "net.ipv4.conf.*": """
        accept_local accept_redirects accept_source_route arp_accept arp_announce arp_evict_nocarrier arp_filter
        arp_ignore arp_notify bc_forwarding bootp_relay disable_policy disable_xfrm drop_gratuitous_arp
        drop_unicast_in_l2_multicast force_igmp_version forwarding igmpv2_unsolicited_report_interval
        igmpv3_unsolicited_report_interval ignore_routes_with_linkdown log_martians mc_forwarding
        promote_secondaries proxy_arp proxy_arp_pvlan route_localnet rp_filter secure_redirects send_redirects
        shared_media src_valid_mark
    """,
    "net.ipv4.neigh.*": """
        anycast_delay app_solicit base_reachable_time_ms delay_first_probe_time gc_interval gc_stale_time
        gc_thresh1 gc_thresh2 gc_thresh3 interval_probe_time_ms locktime mcast_resolicit mcast_solicit
        proxy_delay proxy_qlen retrans_time_ms ucast_solicit unres_qlen unres_qlen_bytes
    """,
    "net.ipv6": """
        anycast_src_echo_reply auto_flowlabels bindv6only fib_multipath_hash_fields fib_multipath_hash_policy
        fib_notify_on_flag_change flowlabel_consistency flowlabel_reflect flowlabel_state_ranges fwmark_reflect
        icmp.echo_ignore_all icmp.echo_ignore_anycast icmp.echo_ignore_multicast icmp.error_anycast_as_unicast
        icmp.ratelimit icmp.ratemask idgen_delay idgen_retries ip6frag_high_thresh ip6frag_low_thresh
        ip6frag_time ip_nonlocal_bind max_dst_opts_length max_dst_opts_number max_hbh_length max_hbh_opts_number
        mld_max_msf mld_qrv route.gc_elasticity route.gc_interval route.gc_min_interval route.gc_min_interval_ms
        route.gc_thresh route.gc_timeout route.max_size route.min_adv_mss route.mtu_expires
        route.skip_notify_on_dev_down xfrm6_gc_thresh
    """,
    "net.ipv6.conf.*": """
        accept_dad accept_ra accept_ra_defrtr accept_ra_from_local accept_ra_min_hop_limit accept_ra_min_lft
        accept_ra_mtu accept_ra_pinfo accept_ra_rt_info_max_plen accept_ra_rt_info_min_plen accept_ra_rtr_pref
        accept_redirects accept_source_route accept_untracked_na addr_gen_mode autoconf dad_transmits
        disable_ipv6 disable_policy drop_unicast_in_l2_multicast drop_unsolicited_na enhanced_dad
        force_forwarding force_mld_version force_tllao forwarding hop_limit ignore_routes_with_linkdown
        keep_addr_on_down max_addresses max_desync_factor mc_forwarding mldv1_unsolicited_report_interval
        mldv2_unsolicited_report_interval mtu ndisc_evict_nocarrier ndisc_notify ndisc_tclass optimistic_dad
        proxy_ndp ra_defrtr_metric ra_honor_pio_life ra_honor_pio_pflag regen_max_retry regen_min_advance
        router_probe_interval router_solicitation_delay router_solicitation_interval
        router_solicitation_max_interval router_solicitations suppress_frag_ndisc temp_prefered_lft
        temp_valid_lft use_oif_addrs_only use_optimistic use_tempaddr
    """,
    "net.ipv6.neigh.*": """
        anycast_delay app_solicit base_reachable_time_ms delay_first_probe_time gc_interval gc_stale_time
        gc_thresh1 gc_thresh2 gc_thresh3 interval_probe_time_ms locktime mcast_resolicit mcast_solicit
        proxy_delay proxy_qlen retrans_time_ms ucast_solicit unres_qlen unres_qlen_bytes
    """,
    "net.netfilter": """
        nf_conntrack_acct nf_conntrack_buckets nf_conntrack_checksum nf_conntrack_dccp_loose nf_conntrack_events
        nf_conntrack_expect_max nf_conntrack_frag6_high_thresh nf_conntrack_frag6_low_thresh
        nf_conntrack_frag6_timeout nf_conntrack_generic_timeout nf_conntrack_gre_timeout
        nf_conntrack_gre_timeout_stream nf_conntrack_helper nf_conntrack_icmp_timeout
        nf_conntrack_icmpv6_timeout nf_conntrack_log_invalid nf_conntrack_max nf_conntrack_sctp_timeout_closed
        nf_conntrack_sctp_timeout_cookie_echoed nf_conntrack_sctp_timeout_cookie_wait
        nf_conntrack_sctp_timeout_established nf_conntrack_sctp_timeout_heartbeat_sent
        nf_conntrack_sctp_timeout_shutdown_ack_sent nf_conntrack_sctp_timeout_shutdown_recd
        nf_conntrack_sctp_timeout_shutdown_sent nf_conntrack_tcp_be_liberal nf_conntrack_tcp_ignore_invalid_rst
        nf_conntrack_tcp_loose nf_conntrack_tcp_max_retrans nf_conntrack_tcp_timeout_close
        nf_conntrack_tcp_timeout_close_wait nf_conntrack_tcp_timeout_established
        nf_conntrack_tcp_timeout_fin_wait nf_conntrack_tcp_timeout_last_ack nf_conntrack_tcp_timeout_max_retrans
        nf_conntrack_tcp_timeout_syn_recv nf_conntrack_tcp_timeout_syn_sent nf_conntrack_tcp_timeout_time_wait
        nf_conntrack_tcp_timeout_unacknowledged nf_conntrack_timestamp nf_conntrack_udp_timeout
        nf_conntrack_udp_timeout_stream nf_flowtable_tcp_timeout nf_flowtable_udp_timeout nf_log_all_netns
    """,
    "net.unix": """
        max_dgram_qlen
    """,
    "vm": """
        admin_reserve_kbytes dirty_background_bytes dirty_background_ratio dirty_bytes dirty_expire_centisecs
        dirty_ratio dirty_writeback_centisecs max_map_count min_free_kbytes mmap_min_addr nr_hugepages
        oom_dump_tasks oom_kill_allocating_task overcommit_memory overcommit_ratio panic_on_oom stat_interval
        swappiness vfs_cache_pressure watermark_boost_factor watermark_scale_factor
    """,
}

KNOWN = frozenset(f"{place}.{name}" for place, words in _WORDS.items() for name in words.split())
"""Every key, with `*` for the name of a device."""

_GONE: tuple[tuple[str, str, tuple[int, int], str], ...] = (
    (r"net\.ipv4\.tcp_tw_recycle", "Linux has had none since 4.12: it broke clients behind NAT", (0, 0),
     "leave it out; net.ipv4.tcp_tw_reuse is set"),
    (r"net\.ipv4\.(netfilter\.)?ip_conntrack_[a-z_]+", "it is called net.netfilter.nf_conntrack_… since 4.6", (0, 0),
     "state sizing, or write net.netfilter.nf_conntrack_max"),
    (r"net\.nf_conntrack_max", "it is an alias", (0, 0), "write net.netfilter.nf_conntrack_max"),
    (r"net\.ipv4\.tcp_(fack|low_latency)", "it has no effect since 4.15", (0, 0), "leave it out"),
    (r"net\.ipv4\.tcp_(abc|frto_response|max_ssthresh|dma_copybreak|cookie_size|thin_dupack|prequeue)",
     "Linux has it no more", (0, 0), "leave it out"),
    (r"net\.ipv4\.route\.(max_size|gc_[a-z_]+)", "IPv4 has no route cache since 3.6", (0, 0), "leave it out"),
    (r"net\.ipv4\.inet_peer_gc_[a-z]+|net\.ipv4\.rt_cache_rebuild_count", "Linux has it no more", (0, 0),
     "leave it out"),
    (r"net\.ipv4\.tcp_adv_win_scale", "it has no effect since 6.6", (24, 10), "leave it out"),
)  # fmt: skip
"""Pattern, why it is of no use, the first release for which that holds, and what to do."""

_OWNED: tuple[tuple[str, tuple[str, ...], str], ...] = (
    (r"net\.ipv4\.ip_forward|net\.ipv[46]\.conf\..*\.forwarding", ("networks",),
     "whether packets pass through follows from networks.<name>.egress and the services"),
    (r"net\.ipv[46]\.ip_nonlocal_bind", ("vips",), "HAProxy has to start on a node that does not hold the VIPs"),
    (r"net\.ipv4\.ip_local_reserved_ports", ("monitoring", "statistics", "port"),
     "it follows from the ports that the profile names"),
    (r"net\.ipv4\.vs\..*", ("services",), "it follows from the services' topology"),
    (r"net\.ipv6\.conf\..*\.disable_ipv6", ("networks",), "the families are those of networks.<name>.subnet"),
    (r"kernel\.hostname", ("name",), "it follows from the profile's and the node's name"),
)  # fmt: skip
"""Pattern, the profile's key that decides, and how."""


def general(key: str) -> str:
    """A key with `*` for the device: `net.ipv4.conf.eth0.rp_filter` → `net.ipv4.conf.*.rp_filter`."""
    return re.sub(r"^(net\.ipv[46]\.(?:conf|neigh))\.[^.]+\.", r"\1.*.", key)


def gone(key: str, release: Release) -> tuple[str, str] | None:
    """Why a key is of no use on a release, and what to do; None if it is of use."""
    return next(
        ((why, fix) for pattern, why, since, fix in _GONE if release.branch >= since and re.fullmatch(pattern, key)),
        None,
    )


def owner(key: str) -> tuple[tuple[str, ...], str] | None:
    """The key of the profile that decides a kernel value, and how; None if it is free."""
    return next(((place, how) for pattern, place, how in _OWNED if re.fullmatch(pattern, key)), None)
