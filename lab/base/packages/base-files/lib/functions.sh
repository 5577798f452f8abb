#!/bin/sh
# The shell functions that OpenWrt's init scripts and uci-defaults use (package/base-files/files/lib/functions.sh and
# openwrt/uci sh/uci.sh): UCI in shell variables. Same names and effects, own code.

N="
"

_C=0
NO_EXPORT=1
LOAD_STATE=1
LIST_SEP=" "

reset_cb() {
	config_cb() { return 0; }
	option_cb() { return 0; }
	list_cb() { return 0; }
}
reset_cb

package() { return 0; }

config_load() {
	local text
	[ -n "$IPKG_INSTROOT" ] && return 0
	CONFIG_SECTIONS=
	CONFIG_NUM_SECTIONS=0
	CONFIG_SECTION=
	text="$(/sbin/uci ${UCI_CONFIG_DIR:+-c $UCI_CONFIG_DIR} -n export "$1" 2>/dev/null)" || return $?
	eval "$text"
	${CONFIG_SECTION:+config_cb}
}
uci_load() { config_load "$@"; }

config() {
	local type="$1" name="$2"
	CONFIG_NUM_SECTIONS=$((CONFIG_NUM_SECTIONS + 1))
	name="${name:-cfg$CONFIG_NUM_SECTIONS}"
	config_cb "$type" "$name"
	CONFIG_SECTION="$name"
	CONFIG_SECTIONS="${CONFIG_SECTIONS:+$CONFIG_SECTIONS }$name"
	config_set "$name" TYPE "$type"
}

option() {
	local name="$1"
	shift
	config_set "$CONFIG_SECTION" "$name" "$*"
	option_cb "$name" "$*"
}

list() {
	local name="$1" length value
	shift
	eval "length=\${CONFIG_${CONFIG_SECTION}_${name}_LENGTH:-0}"
	length=$((length + 1))
	config_set "$CONFIG_SECTION" "${name}_ITEM$length" "$*"
	config_set "$CONFIG_SECTION" "${name}_LENGTH" "$length"
	eval "value=\$CONFIG_${CONFIG_SECTION}_$name"
	config_set "$CONFIG_SECTION" "$name" "${value:+$value$LIST_SEP}$*"
	list_cb "$name" "$*"
}

config_set() {
	eval "CONFIG_$1_$2=\$3"
}

config_get() {
	case "$2${3:-$1}" in *[!A-Za-z0-9_]*) return ;; esac
	case "$3" in
		"") eval "printf '%s\n' \"\${CONFIG_$1_$2:-\$4}\"" ;;
		*) eval "$1=\${CONFIG_$2_$3:-\$4}" ;;
	esac
}

get_bool() {
	case "$1" in
		1 | on | true | yes | enabled) echo 1 ;;
		0 | off | false | no | disabled) echo 0 ;;
		*) echo "$2" ;;
	esac
}

config_get_bool() {
	local _value
	config_get _value "$2" "$3"
	_value="$(get_bool "$_value" "$4")"
	eval "$1=\$_value"
}

config_foreach() {
	local _function="$1" _type="$2" _section _found
	[ "$#" -ge 1 ] && shift
	[ "$#" -ge 1 ] && shift
	for _section in $CONFIG_SECTIONS; do
		if [ -n "$_type" ]; then
			config_get _found "$_section" TYPE
			[ "$_found" = "$_type" ] || continue
		fi
		eval "$_function \"\$_section\" \"\$@\""
	done
}

config_list_foreach() {
	[ "$#" -ge 3 ] || return 0
	local _section="$1" _option="$2" _function="$3" _length _value _i=1
	shift 3
	config_get _length "$_section" "${_option}_LENGTH"
	[ -z "$_length" ] && return 0
	while [ "$_i" -le "$_length" ]; do
		config_get _value "$_section" "${_option}_ITEM$_i"
		eval "$_function \"\$_value\" \"\$@\""
		_i=$((_i + 1))
	done
}

append() {
	local _sep="${3:- }"
	eval "$1=\"\${$1:+\${$1}\$_sep}\$2\""
}

list_contains() {
	local _all
	eval "_all=\" \${$1} \""
	case "$_all" in *" $2 "*) return 0 ;; esac
	return 1
}

uci_get() { /sbin/uci -q get "$1${2:+.$2}${3:+.$3}" || { [ -n "$4" ] && echo "$4"; }; }
uci_set() { /sbin/uci set "$1.$2.$3=$4"; }
uci_add_list() { /sbin/uci add_list "$1.$2.$3=$4"; }
uci_remove() { /sbin/uci -q delete "$1.$2${3:+.$3}"; }
uci_commit() { /sbin/uci commit "$1"; }

board_name() { echo ndakit-lab; }

include() {
	local file
	for file in "$1"/*.sh; do
		# shellcheck disable=SC1090  # the caller's folder
		[ -r "$file" ] && . "$file"
	done
}

find_mtd_part() { return 1; }
