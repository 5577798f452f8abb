-- Reads /etc/config/network into what is wanted: devices, interfaces, routes, rules. Nothing is applied here.
-- Stands for openwrt/netifd config.c, device.c, interface.c, interface-ip.c, iprule.c and proto-static.c.
local uci = require("lab.uci")
local address = require("lab.address")

local netconfig = {}

-- What this stand-in does something with, or may ignore as real netifd's effect is not visible here.
local known = {
	globals = "ula_prefix packet_steering dhcp_default_duid tcp_l3mdev udp_l3mdev steering_flows",
	device = "name type ifname ports vid mtu mtu6 macaddr txqueuelen enabled ipv6 promisc rpfilter acceptlocal sendredirects " ..
		"stp bridge_empty igmp_snooping multicast_querier forward_delay mode policy xmit_hash_policy all_ports_active min_links lacp_rate " ..
		"ad_select primary primary_reselect failover_mac monitor_mode monitor_interval updelay downdelay use_carrier num_peer_notif arp_target arp_validate",
	interface = "proto device ifname type ipaddr netmask gateway broadcast metric dns dns_search dns_metric ip6addr ip6gw ip6prefix ip6assign " ..
		"ip6table ip4table delegate auto disabled force_link defaultroute peerdns mtu macaddr stp igmp_snooping zone description " ..
		"bonding_policy slaves link_monitoring miimon downdelay updelay use_carrier primary lacp_rate xmit_hash_policy min_links all_slaves_active",
	route = "interface target netmask gateway metric mtu table source onlink type valid proto disabled",
	rule = "in out src dest mark priority lookup invert tos suppress_prefixlength action goto ipproto disabled",
}
known.route6, known.rule6 = known.route, known.rule
local protos = { static = true, none = true, bonding = true }
local route_types = { unicast = true, ["local"] = true, blackhole = true, unreachable = true, prohibit = true, throw = true, broadcast = true, multicast = true, anycast = true, nat = true }

local function words(text)
	local set = {}
	for w in text:gmatch("%S+") do set[w] = true end
	return set
end
for k, v in pairs(known) do known[k] = words(v) end

local function plain(s, name)
	local v = uci.value(s, name)
	if type(v) == "table" then return v[#v] end
	return v
end

local function note(out, text) out.unsupported[#out.unsupported + 1] = text end

local function check_options(out, s)
	for _, o in ipairs(s.options) do
		if not known[s.type][o.name] then note(out, "network." .. s.name .. "." .. o.name) end
	end
end

local function device(out, s)
	local name = plain(s, "name")
	local kind = plain(s, "type")
	if not name then return end
	local d = { name = name, type = kind, ports = uci.list(s, "ports"), options = {} }
	if kind == "bridge" and #d.ports == 0 then d.ports = uci.list(s, "ifname") end
	for _, o in ipairs(s.options) do d.options[o.name] = type(o.value) == "table" and table.concat(o.value, " ") or o.value end
	if kind and not ({ bridge = 1, ["8021q"] = 1, ["8021ad"] = 1, macvlan = 1, veth = 1, bonding = 1, dummy = 1 })[kind] then
		note(out, "network device type " .. kind)
	end
	out.devices[name] = d
end

local function addresses(i, s, option, family)
	local mask = plain(s, "netmask")
	for _, text in ipairs(uci.list(s, option)) do
		local default = family == 4 and (mask and not text:find("/") and address.prefix(mask, 32)) or nil
		local found, host, bits = address.cidr(text, default)
		if found ~= family then
			i.error = { subsystem = i.proto, code = "INVALID_ADDRESS" }
		else
			i.addresses[#i.addresses + 1] = { family = family, address = host, mask = bits }
		end
	end
	-- uci.list splits at blanks, so a stray blank at the end of a value would be lost here; netifd refuses it.
	local raw = uci.value(s, option)
	for _, text in ipairs(type(raw) == "table" and raw or { raw }) do
		if text:find("^%s") or text:find("%s$") then i.error = { subsystem = i.proto, code = "INVALID_ADDRESS" } end
	end
end

local function bond_options(s)
	local o = { policy = plain(s, "bonding_policy") }
	o.monitor_mode = plain(s, "link_monitoring")
	o.monitor_interval = plain(s, "miimon")
	for _, name in ipairs({ "downdelay", "updelay", "use_carrier", "primary", "lacp_rate", "xmit_hash_policy", "min_links" }) do
		o[name] = plain(s, name)
	end
	return o
end

local function interface(out, s, old_syntax)
	local proto = plain(s, "proto") or "none"
	local i = { name = s.name, proto = proto, addresses = {}, routes = {}, dns = uci.list(s, "dns"), search = uci.list(s, "dns_search") }
	if uci.bool(plain(s, "disabled")) then return end
	i.auto = uci.bool(plain(s, "auto")) ~= false
	i.metric = tonumber(plain(s, "metric"))
	if not protos[proto] then note(out, "network." .. s.name .. " proto " .. proto) end
	if old_syntax then
		if uci.value(s, "device") then note(out, "network." .. s.name .. ".device (this release takes ifname)") end
		local ports = uci.list(s, "ifname")
		if plain(s, "type") == "bridge" then
			i.device = "br-" .. s.name
			out.devices[i.device] = { name = i.device, type = "bridge", ports = ports, options = { stp = plain(s, "stp"), igmp_snooping = plain(s, "igmp_snooping"), mtu = plain(s, "mtu"), macaddr = plain(s, "macaddr") } }
		else
			i.device = ports[1]
		end
	else
		-- netifd still reads ifname for a plain device name; `type bridge` in an interface it does not (NO_DEVICE).
		i.device = plain(s, "device") or (plain(s, "type") ~= "bridge" and plain(s, "ifname")) or nil
	end
	if i.device and i.device:match("^@") then
		note(out, "network." .. s.name .. ".device alias " .. i.device)
	end
	if proto == "bonding" then
		i.device = "bond-" .. s.name
		out.devices[i.device] = { name = i.device, type = "bonding", ports = uci.list(s, "slaves"), options = bond_options(s) }
		if not out.bonding_package then i.error = { subsystem = "interface", code = "NO_DEVICE" } end
	end
	if proto == "static" or proto == "bonding" then
		addresses(i, s, "ipaddr", 4)
		addresses(i, s, "ip6addr", 6)
		for option, family in pairs({ gateway = 4, ip6gw = 6 }) do
			local gateway = plain(s, option)
			if gateway and address.family(gateway) ~= family then
				i.error = { subsystem = proto, code = "INVALID_GATEWAY" }
			elseif gateway then
				i.routes[#i.routes + 1] = { family = family, target = "default", gateway = gateway, metric = i.metric, table = plain(s, family == 4 and "ip4table" or "ip6table"), own = true }
			end
		end
		table.sort(i.routes, function(a, b) return a.family < b.family end)
	end
	out.interfaces[#out.interfaces + 1] = i
	out.by_name[i.name] = i
end

local function route(out, s)
	if uci.bool(plain(s, "disabled")) then return end
	local family = s.type == "route6" and 6 or 4
	local r = { family = family, interface = plain(s, "interface"), gateway = plain(s, "gateway"), metric = plain(s, "metric"), table = plain(s, "table"), source = plain(s, "source"), mtu = plain(s, "mtu"), proto = plain(s, "proto") }
	r.kind = plain(s, "type") or "unicast"
	r.onlink = uci.bool(plain(s, "onlink"))
	if not route_types[r.kind] then return end
	local target = plain(s, "target")
	if target == "default" then target = family == 4 and "0.0.0.0/0" or "::/0" end
	if target then
		local mask = plain(s, "netmask")
		local found, host, bits = address.cidr(target, mask and address.prefix(mask, 32))
		if found ~= family then return end
		r.target = address.network(host, bits)
	else
		r.target = family == 4 and "0.0.0.0/32" or "::/128" -- netifd: a host route to nothing, useless
	end
	if r.gateway and address.family(r.gateway) ~= family then return end
	if r.table and not r.table:match("^%d+$") and not ({ main = 1, ["local"] = 1, default = 1 })[r.table] then return end
	out.routes[#out.routes + 1] = r
end

local function rule(out, s, position)
	if uci.bool(plain(s, "disabled")) then return end
	local r = { family = s.type == "rule6" and 6 or 4, src = plain(s, "src"), dest = plain(s, "dest"), tos = plain(s, "tos"), action = plain(s, "action"), lookup = plain(s, "lookup"), go = plain(s, "goto"), ipproto = plain(s, "ipproto"), suppress = plain(s, "suppress_prefixlength") }
	r["in"], r.out = plain(s, "in"), plain(s, "out")
	r.invert = uci.bool(plain(s, "invert"))
	r.priority = tonumber(plain(s, "priority")) or position
	local mark, mask = (plain(s, "mark") or ""):match("^(%w+)/?(%w*)$")
	if mark and tonumber(mark) then
		r.mark = string.format("0x%x", tonumber(mark)) .. (tonumber(mask) and string.format("/0x%x", tonumber(mask)) or "")
	end
	if r.lookup and not r.lookup:match("^%d+$") and not ({ main = 1, ["local"] = 1, default = 1 })[r.lookup] then return end
	out.rules[#out.rules + 1] = r
end

-- Read the configuration; nil and the parser's message when uci refuses the file. `old_syntax`: releases before 21.02.
function netconfig.read(old_syntax, bonding_package)
	local ok, package = pcall(uci.load, "network")
	if not ok then return nil, tostring(package) end
	local out = { devices = {}, interfaces = {}, by_name = {}, routes = {}, rules = {}, unsupported = {}, bonding_package = bonding_package }
	if not package then return out end
	local position = 0
	for _, s in ipairs(package.sections) do
		if known[s.type] then check_options(out, s) end
		if s.type == "device" and not old_syntax then
			device(out, s)
		elseif s.type == "interface" then
			interface(out, s, old_syntax)
		elseif s.type == "route" or s.type == "route6" then
			route(out, s)
		elseif s.type == "rule" or s.type == "rule6" then
			position = position + 1
			rule(out, s, position)
		elseif s.type ~= "globals" then
			note(out, "network section type " .. s.type .. (s.type == "device" and " (this release)" or ""))
		end
	end
	return out
end

return netconfig
