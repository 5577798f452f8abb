-- Brings the kernel to what netconfig says, through iproute2: only what differs is touched, so that addresses netifd does
-- not own (keepalived's) stay as long as they do on OpenWrt.
local netapply = { IP = "/usr/libexec/lab/ip" }

local function file_text(path)
	local f = io.open(path)
	if not f then return nil end
	local text = f:read("a")
	f:close()
	return text
end

function netapply.exists(device) return file_text("/sys/class/net/" .. device .. "/ifindex") ~= nil end

-- Run ip commands, each kind (links, IPv4, IPv6) in one process; a line that fails does not stop the rest. What ip says
-- is returned.
function netapply.ip(lines)
	local kinds = { {}, {}, {} }
	for _, line in ipairs(lines) do
		local family, rest = line:match("^%-([46]) (.*)$")
		local kind = kinds[family == "4" and 2 or family == "6" and 3 or 1]
		kind[#kind + 1] = rest or line
	end
	local said = ""
	for number, kind in ipairs(kinds) do
		if #kind > 0 then
			local name = os.tmpname()
			local f = io.open(name, "w")
			f:write(table.concat(kind, "\n"), "\n")
			f:close()
			local p = io.popen(netapply.IP .. ({ "", " -4", " -6" })[number] .. " -force -batch " .. name .. " 2>&1")
			said = said .. p:read("a")
			p:close()
			os.remove(name)
		end
	end
	return said
end

local function write(path, text)
	local f = io.open(path, "w")
	if f then
		f:write(text)
		f:close()
	end
end

local bond_names = {
	xmit_hash_policy = "xmit_hash_policy", min_links = "min_links", lacp_rate = "lacp_rate", ad_select = "ad_select",
	updelay = "updelay", downdelay = "downdelay", use_carrier = "use_carrier", all_ports_active = "all_slaves_active",
	primary_reselect = "primary_reselect", failover_mac = "fail_over_mac", num_peer_notif = "num_grat_arp",
}

local function bond(d)
	local o = d.options
	local line = "link add " .. d.name .. " type bond mode " .. (o.policy or "balance-rr")
	if (o.monitor_mode or "mii") ~= "arp" then
		line = line .. " miimon " .. (o.monitor_interval or "100")
	else
		line = line .. " arp_interval " .. (o.monitor_interval or "100") .. " arp_ip_target " .. (o.arp_target or ""):gsub("%s+", ",")
	end
	for ours, theirs in pairs(bond_names) do
		if o[ours] then line = line .. " " .. theirs .. " " .. o[ours] end
	end
	return line
end

local function number(text) return text and text:match("^%d+$") end

-- Make sure a device exists with what it is made of; false when it cannot. `made` collects new virtual devices.
function netapply.ensure(config, name, made, depth)
	if not name or #name > 15 or (depth or 0) > 5 then return false end
	local d = config.devices[name] or { name = name, ports = {}, options = {} }
	local base, vid = name:match("^(.+)%.(%d+)$")
	local lines = {}
	local created = not netapply.exists(name)
	if d.type == "bridge" then
		if created then
			lines[1] = "link add " .. name .. " type bridge mcast_snooping " .. (d.options.igmp_snooping == "1" and "1" or "0")
			-- netifd's own times, half as long as the kernel's.
			if d.options.stp == "1" then lines[1] = lines[1] .. " stp_state 1 forward_delay 800 hello_time 100 max_age 1000" end
		end
	elseif d.type == "bonding" then
		if created then lines[1] = bond(d) end
	elseif d.type == "8021q" or d.type == "8021ad" or d.type == "macvlan" then
		-- netifd claims the device below, which brings it up.
		local below = d.options.ifname
		if not netapply.ensure(config, below, made, (depth or 0) + 1) then return false end
		lines[1] = "link set " .. below .. " up"
		if created then
			local kind = d.type == "macvlan" and "macvlan mode " .. (d.options.mode or "private")
				or "vlan proto " .. (d.type == "8021ad" and "802.1ad" or "802.1Q") .. " id " .. (d.options.vid or "1")
			lines[2] = "link add link " .. below .. " name " .. name .. " type " .. kind
		end
	elseif d.type == "dummy" then
		if created then lines[1] = "link add " .. name .. " type dummy" end
	elseif created and base then
		if not netapply.ensure(config, base, made, (depth or 0) + 1) then return false end
		lines[1] = "link set " .. base .. " up"
		lines[2] = "link add link " .. base .. " name " .. name .. " type vlan id " .. vid
	elseif created then
		return false
	end
	netapply.ip(lines)
	if not netapply.exists(name) then return false end
	if created then made[#made + 1] = name end
	netapply.settings(d, created)
	if d.type == "bridge" or d.type == "bonding" then netapply.ports(config, d, made, depth or 0) end
	return true
end

-- mtu, MAC address and per-device switches of a device section.
function netapply.settings(d, created)
	local lines = {}
	local o = d.options
	if number(o.mtu) then lines[#lines + 1] = "link set " .. d.name .. " mtu " .. o.mtu end
	if created and o.macaddr then lines[#lines + 1] = "link set " .. d.name .. " address " .. o.macaddr end
	if number(o.txqueuelen) then lines[#lines + 1] = "link set " .. d.name .. " txqueuelen " .. o.txqueuelen end
	if o.promisc then lines[#lines + 1] = "link set " .. d.name .. " promisc " .. (o.promisc == "1" and "on" or "off") end
	netapply.ip(lines)
	local base = "/proc/sys/net/ipv4/conf/" .. d.name .. "/"
	if number(o.rpfilter) then write(base .. "rp_filter", o.rpfilter) end
	if o.acceptlocal then write(base .. "accept_local", o.acceptlocal) end
	if o.sendredirects then write(base .. "send_redirects", o.sendredirects) end
	if o.ipv6 then write("/proc/sys/net/ipv6/conf/" .. d.name .. "/disable_ipv6", o.ipv6 == "0" and "1" or "0") end
	if number(o.mtu6) then write("/proc/sys/net/ipv6/conf/" .. d.name .. "/mtu", o.mtu6) end
end

-- Ports of a bridge or bond: add what is missing, release what is no longer listed.
function netapply.ports(config, d, made, depth)
	local lines, wanted = {}, {}
	for _, port in ipairs(d.ports) do
		wanted[port] = true
		if netapply.ensure(config, port, made, depth + 1) then
			local master = file_text("/sys/class/net/" .. port .. "/master/uevent")
			if not (master and master:match("INTERFACE=" .. d.name:gsub("%p", "%%%0") .. "\n")) then
				if d.type == "bonding" then lines[#lines + 1] = "link set " .. port .. " down" end
				lines[#lines + 1] = "link set " .. port .. " master " .. d.name
			end
			lines[#lines + 1] = "link set " .. port .. " up"
		end
	end
	for port in (file_text("/sys/class/net/" .. d.name .. "/bonding/slaves") or ""):gmatch("%S+") do
		if not wanted[port] then lines[#lines + 1] = "link set " .. port .. " nomaster" end
	end
	if d.type == "bridge" then
		local p = io.popen("ls /sys/class/net/" .. d.name .. "/brif 2>/dev/null")
		for port in p:lines() do
			if not wanted[port] then lines[#lines + 1] = "link set " .. port .. " nomaster" end
		end
		p:close()
	end
	if d.type == "bonding" and d.options.primary then
		lines[#lines + 1] = "link set " .. d.name .. " type bond primary " .. d.options.primary
	end
	netapply.ip(lines)
end

function netapply.address_line(verb, a, device)
	local tail = a.family == 4 and a.mask < 31 and verb ~= "del" and " broadcast +" or ""
	return string.format("-%d address %s %s/%d dev %s%s", a.family, verb, a.address, a.mask, device, tail)
end

function netapply.route_line(verb, r, device)
	local words = { "-" .. r.family, "route", verb }
	local kind = r.kind or "unicast"
	if kind ~= "unicast" then words[#words + 1] = kind end
	words[#words + 1] = r.target
	if r.gateway then words[#words + 1] = "via " .. r.gateway end
	if device and kind ~= "blackhole" and kind ~= "unreachable" and kind ~= "prohibit" and kind ~= "throw" then words[#words + 1] = "dev " .. device end
	words[#words + 1] = "proto " .. (r.proto or "static")
	if r.metric then words[#words + 1] = "metric " .. r.metric end
	if r.table then words[#words + 1] = "table " .. r.table end
	if r.source then words[#words + 1] = "src " .. r.source end
	if r.onlink then words[#words + 1] = "onlink" end
	if r.mtu then words[#words + 1] = "mtu " .. r.mtu end
	return table.concat(words, " ")
end

function netapply.rule_line(verb, r, device_of)
	local words = { "-" .. r.family, "rule", verb }
	if r.invert then words[#words + 1] = "not" end
	if r.src then words[#words + 1] = "from " .. r.src end
	if r.dest then words[#words + 1] = "to " .. r.dest end
	if r.mark then words[#words + 1] = "fwmark " .. r.mark end
	if r["in"] then words[#words + 1] = "iif " .. (device_of(r["in"]) or r["in"]) end
	if r.out then words[#words + 1] = "oif " .. (device_of(r.out) or r.out) end
	if r.tos then words[#words + 1] = "tos " .. r.tos end
	if r.ipproto then words[#words + 1] = "ipproto " .. r.ipproto end
	words[#words + 1] = "priority " .. math.tointeger(r.priority)
	if r.action then
		words[#words + 1] = r.action
	elseif r.go then
		words[#words + 1] = "goto " .. r.go
	elseif r.lookup then
		words[#words + 1] = "lookup " .. r.lookup
	end
	if r.suppress then words[#words + 1] = "suppress_prefixlength " .. r.suppress end
	return table.concat(words, " ")
end

return netapply
