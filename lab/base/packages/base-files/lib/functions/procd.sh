#!/bin/sh
# procd's shell interface (openwrt: package/system/procd/files/procd.sh): same functions, own code. The wanted service
# is collected as records and handed to procd in one call.
# shellcheck disable=SC2154  # basescript comes from rc.common

_PROCD_RECORDS=
_procd_us="$(printf '\037')"
_procd_rs="$(printf '\036')"

_procd_record() {
	local field
	for field in "$@"; do
		_PROCD_RECORDS="$_PROCD_RECORDS$field$_procd_us"
	done
	_PROCD_RECORDS="$_PROCD_RECORDS$_procd_rs"
}

procd_lock() { return 0; }

procd_open_service() {
	_PROCD_RECORDS=
	_PROCD_INSTANCES=0
	_procd_record service "$1" "$2"
}

procd_close_service() {
	if eval "type service_triggers" 2>/dev/null >/dev/null; then service_triggers; fi
	printf '%s' "$_PROCD_RECORDS" | /usr/libexec/lab/procd-set "${1:-set}"
}

procd_open_instance() {
	_PROCD_INSTANCES=$((_PROCD_INSTANCES + 1))
	_procd_record instance "${1:-instance$_PROCD_INSTANCES}"
}
procd_close_instance() { return 0; }

procd_set_param() {
	# A respawn without values takes those of the first section of type service in /etc/config/system, if there is one.
	if [ "$*" = respawn ]; then
		set -- respawn "$(_procd_respawn threshold 3600)" "$(_procd_respawn timeout 5)" "$(_procd_respawn retry 5)"
	fi
	_procd_record param "$@"
}
_procd_respawn() { uci -q get "system.@service[0].respawn_$1" || echo "$2"; }
procd_append_param() { _procd_record append "$@"; }

procd_open_trigger() { return 0; }
procd_close_trigger() { return 0; }
procd_open_validate() { return 0; }
procd_close_validate() { return 0; }

procd_add_config_trigger() {
	local event="$1" package="$2"
	shift 2
	_procd_record trigger "$event" package "$package" "$@"
}
procd_add_reload_trigger() {
	local file
	for file in "$@"; do
		procd_add_config_trigger config.change "$file" /etc/init.d/"$(basename "$basescript")" reload
	done
}
procd_add_interface_trigger() {
	local event="$1" interface="$2"
	shift 2
	_procd_record trigger "$event" interface "$interface" "$@"
}
procd_add_reload_interface_trigger() {
	procd_add_interface_trigger "interface.*" "$1" /etc/init.d/"$(basename "$basescript")" reload
}
procd_add_restart_trigger() {
	procd_add_config_trigger config.change "$1" /etc/init.d/"$(basename "$basescript")" restart
}
procd_add_raw_trigger() {
	local event="$1"
	shift 2
	_procd_record trigger "$event" package "" "$@"
}
procd_add_validation() { return 0; }

uci_load_validate() {
	local package="$1" type="$2" section="$3" callback="$4" item name rest default value
	shift 4
	for item in "$@"; do
		name="${item%%:*}"
		rest="${item#*:}"
		default=
		# "name:type:default"; a type may hold colons inside parentheses only.
		case "$rest" in *:*) default="${rest##*:}" ;; esac
		case "$default" in *")"*) default= ;; esac
		config_get value "$section" "$name" "$default"
		case "$rest" in bool*) value="$(get_bool "$value" "$default")" ;; esac
		eval "$name=\$value"
	done
	"$callback" "$section" 0
	: "$package" "$type"
}

procd_kill() {
	local service="$1" instance="$2"
	/bin/ubus call service delete "{\"name\":\"$service\"${instance:+,\"instance\":\"$instance\"}}" >/dev/null 2>&1
	return 0
}

procd_send_signal() {
	local service="$1" instance="$2" signal="$3"
	case "$signal" in
		[A-Z]*) signal="$(kill -l "$signal" 2>/dev/null || echo 1)" ;;
	esac
	[ "$instance" = '*' ] && instance=
	/bin/ubus call service signal "{\"name\":\"$service\"${instance:+,\"instance\":\"$instance\"}${signal:+,\"signal\":$signal}}" >/dev/null
}

procd_running() { /usr/libexec/lab/procd-running "$1" "$2"; }
service_running() { procd_running "$(basename "$basescript")" "$1"; }
_procd_status() { /usr/libexec/lab/procd-running -p "$1" "$2"; }
