-- The whole ruleset as nft text, with fw4's chain names and order (openwrt/firewall4 templates/ruleset.uc and
-- templates/zone-*.uc, restated).
local match = require("lab.fw4.match")

local render = {}

local function includes(fw, key, indent)
	local out = {}
	for _, path in ipairs(fw.includes[key] or {}) do out[#out + 1] = indent .. 'include "' .. path .. '"' end
	return out
end

local function chain(out, fw, name, hook, body)
	out[#out + 1] = "\tchain " .. name .. " {"
	if hook then out[#out + 1] = "\t\t" .. hook end
	for _, line in ipairs(includes(fw, "chain-pre:" .. name, "\t\t")) do out[#out + 1] = line end
	for _, line in ipairs(body) do out[#out + 1] = "\t\t" .. line end
	for _, line in ipairs(includes(fw, "chain-post:" .. name, "\t\t")) do out[#out + 1] = line end
	out[#out + 1] = "\t}\n"
end

local function with(list, ...)
	for _, x in ipairs({ ... }) do
		if x and x ~= "" then list[#list + 1] = x end
	end
	return list
end

local function copy(list)
	local out = {}
	for _, x in ipairs(list or {}) do out[#out + 1] = x end
	return out
end

local function jump(z, verb, target, text)
	local lines = {}
	for _, devices in ipairs(match.devices(verb, z.devices)) do lines[#lines + 1] = devices .. "jump " .. target .. ' comment "!fw4: ' .. text .. '"' end
	return table.unpack(lines)
end

local function define(z)
	local devices = {}
	for i, d in ipairs(z.devices) do devices[i] = match.quote((d:gsub("%+$", "*"))) end
	return string.format("\tdefine %s_devices = { %s }\n\tdefine %s_subnets = { %s }", z.name, table.concat(devices, ", "), z.name, table.concat(z.subnets, ", "))
end

local function filter(out, fw)
	local d = fw.defaults
	local function states()
		local inner = "established : accept, related : accept"
		if d.drop_invalid then inner = inner .. ", invalid : drop" end
		return "ct state vmap { " .. inner .. ' } comment "!fw4: Handle inbound flows"'
	end
	local function hook(name, policy) return "type filter hook " .. name .. " priority filter; policy " .. (policy == "accept" and "accept" or "drop") .. ";" end
	local body = { 'iifname "lo" accept comment "!fw4: Accept traffic from loopback"', states() }
	if d.synflood_protect then
		with(body, 'tcp flags & (fin | syn | rst | ack) == syn jump syn_flood comment "!fw4: Rate limit TCP syn packets"')
	end
	with(body, table.unpack(copy(fw.chains.input)))
	for _, z in ipairs(fw.zones) do with(body, jump(z, "iifname", "input_" .. z.name, "Handle " .. z.name .. " IPv4/IPv6 input traffic")) end
	if d.input == "reject" then with(body, "jump handle_reject") end
	chain(out, fw, "input", hook("input", d.input), body)
	body = { states() }
	if d.flow_offloading then table.insert(body, 1, 'meta l4proto { tcp, udp } flow offload @ft comment "!fw4: Offload flows"') end
	with(body, table.unpack(copy(fw.chains.forward)))
	for _, z in ipairs(fw.zones) do with(body, jump(z, "iifname", "forward_" .. z.name, "Handle " .. z.name .. " IPv4/IPv6 forward traffic")) end
	if d.forward == "reject" then with(body, "jump handle_reject") end
	chain(out, fw, "forward", hook("forward", d.forward), body)
	body = { 'oifname "lo" accept comment "!fw4: Accept traffic towards loopback"', states() }
	with(body, table.unpack(copy(fw.chains.output)))
	for _, z in ipairs(fw.zones) do with(body, jump(z, "oifname", "output_" .. z.name, "Handle " .. z.name .. " IPv4/IPv6 output traffic")) end
	if d.output == "reject" then with(body, "jump handle_reject") end
	chain(out, fw, "output", hook("output", d.output), body)
	chain(out, fw, "prerouting", "type filter hook prerouting priority filter; policy accept;", {})
	chain(out, fw, "handle_reject", nil, {
		'meta l4proto tcp reject with tcp reset comment "!fw4: Reject TCP traffic"',
		'reject with icmpx type port-unreachable comment "!fw4: Reject any other traffic"',
	})
	if d.synflood_protect then
		local rate = d.synflood_rate or { rate = 25, unit = "second" }
		chain(out, fw, "syn_flood", nil, {
			"limit rate " .. rate.rate .. "/" .. rate.unit .. " burst " .. math.tointeger(d.synflood_burst or 50) .. ' packets return comment "!fw4: Accept SYN packets below rate-limit"',
			'drop comment "!fw4: Drop excess packets"',
		})
	end
end

local function zone_chains(out, fw, z)
	local body = copy(fw.chains["input_" .. z.name])
	if z.dnat then with(body, 'ct status dnat accept comment "!fw4: Accept port redirections"') end
	with(body, "jump " .. z.input .. "_from_" .. z.name)
	chain(out, fw, "input_" .. z.name, nil, body)
	body = copy(fw.chains["output_" .. z.name])
	with(body, "jump " .. z.output .. "_to_" .. z.name)
	chain(out, fw, "output_" .. z.name, nil, body)
	body = copy(fw.chains["forward_" .. z.name])
	if z.dnat then with(body, 'ct status dnat accept comment "!fw4: Accept port forwards"') end
	with(body, "jump " .. z.forward .. "_to_" .. z.name)
	chain(out, fw, "forward_" .. z.name, nil, body)
	local wanted = { [z.input .. "_from_" .. z.name] = true, [z.output .. "_to_" .. z.name] = true, [z.forward .. "_to_" .. z.name] = true }
	for name in pairs(fw.used or {}) do
		if name:sub(-#z.name - 4) == "_to_" .. z.name then wanted[name] = true end
	end
	local log = z.log and z.log & 1 == 1
	for _, verdict in ipairs({ "accept", "reject", "drop" }) do
		for _, direction in ipairs({ "from", "to" }) do
			local name = verdict .. "_" .. direction .. "_" .. z.name
			if wanted[name] then
				local verb = direction == "from" and "iifname" or "oifname"
				local lines = {}
				for _, devices in ipairs(match.devices(verb, z.devices)) do
					if verdict == "accept" and direction == "to" and (z.masq or z.masq6) and not z.masq_allow_invalid then
						local family = z.masq and not z.masq6 and "meta nfproto ipv4 " or ""
						with(lines, family .. devices .. 'ct state invalid counter drop comment "!fw4: Prevent NAT leakage"')
					end
					if log and verdict ~= "accept" then with(lines, match.limit(z.log_limit) .. devices .. 'log prefix "' .. verdict .. " " .. z.name .. (direction == "from" and " in" or " out") .. ': "') end
					local action = verdict == "reject" and "jump handle_reject" or verdict
					with(lines, devices .. "counter " .. action .. string.format(' comment "!fw4: %s %s IPv4/IPv6 traffic"', verdict, z.name))
				end
				chain(out, fw, name, nil, lines)
			end
		end
	end
end

local function masquerade(z)
	local lines = {}
	for family, on in pairs({ [4] = z.masq, [6] = z.masq6 }) do
		if on then
			local text = match.addresses(family, "saddr", z.masq_src) .. match.addresses(family, "daddr", z.masq_dest)
			lines[#lines + 1] = "meta nfproto ipv" .. family .. " " .. text .. string.format('masquerade comment "!fw4: Masquerade IPv%d %s traffic"', family, z.name)
		end
	end
	return lines
end

local function nat(out, fw)
	local pre, post = {}, copy(fw.chains.srcnat)
	for _, z in ipairs(fw.zones) do
		if fw.chains["dstnat_" .. z.name] then with(pre, jump(z, "iifname", "dstnat_" .. z.name, "Handle " .. z.name .. " IPv4/IPv6 dstnat traffic")) end
		if fw.chains["srcnat_" .. z.name] or z.masq or z.masq6 then
			with(post, jump(z, "oifname", "srcnat_" .. z.name, "Handle " .. z.name .. " IPv4/IPv6 srcnat traffic"))
		end
	end
	chain(out, fw, "dstnat", "type nat hook prerouting priority dstnat; policy accept;", pre)
	chain(out, fw, "srcnat", "type nat hook postrouting priority srcnat; policy accept;", post)
	for _, z in ipairs(fw.zones) do
		if fw.chains["dstnat_" .. z.name] then chain(out, fw, "dstnat_" .. z.name, nil, copy(fw.chains["dstnat_" .. z.name])) end
		if fw.chains["srcnat_" .. z.name] or z.masq or z.masq6 then
			local body = copy(fw.chains["srcnat_" .. z.name])
			with(body, table.unpack(masquerade(z)))
			chain(out, fw, "srcnat_" .. z.name, nil, body)
		end
	end
end

local function raw_and_mangle(out, fw)
	local body = {}
	for _, z in ipairs(fw.zones) do
		if fw.chains["notrack_" .. z.name] then with(body, jump(z, "iifname", "notrack_" .. z.name, "Handle " .. z.name .. " IPv4/IPv6 notrack traffic")) end
	end
	chain(out, fw, "raw_prerouting", "type filter hook prerouting priority raw; policy accept;", body)
	chain(out, fw, "raw_output", "type filter hook output priority raw; policy accept;", {})
	for _, z in ipairs(fw.zones) do
		if fw.chains["notrack_" .. z.name] then chain(out, fw, "notrack_" .. z.name, nil, copy(fw.chains["notrack_" .. z.name])) end
	end
	chain(out, fw, "mangle_prerouting", "type filter hook prerouting priority mangle; policy accept;", copy(fw.chains.mangle_prerouting))
	chain(out, fw, "mangle_postrouting", "type filter hook postrouting priority mangle; policy accept;", {})
	chain(out, fw, "mangle_input", "type filter hook input priority mangle; policy accept;", copy(fw.chains.mangle_input))
	chain(out, fw, "mangle_output", "type route hook output priority mangle; policy accept;", copy(fw.chains.mangle_output))
	body = copy(fw.chains.mangle_forward)
	for _, z in ipairs(fw.zones) do
		for _, side in ipairs(z.mtu_fix and { { "iifname", "ingress" }, { "oifname", "egress" } } or {}) do
			for _, devices in ipairs(match.devices(side[1], z.devices)) do
				with(body, devices .. "tcp flags & (fin | syn | rst) == syn tcp option maxseg size set rt mtu"
					.. string.format(' comment "!fw4: Zone %s IPv4/IPv6 %s MTU fixing"', z.name, side[2]))
			end
		end
	end
	chain(out, fw, "mangle_forward", "type filter hook forward priority mangle; policy accept;", body)
end

local function flowtable(out, fw)
	local devices = {}
	for _, z in ipairs(fw.zones) do
		for _, d in ipairs(z.devices) do devices[#devices + 1] = match.quote(d) end
	end
	out[#out + 1] = "\tflowtable ft {\n\t\thook ingress priority 0;\n\t\tdevices = { " .. table.concat(devices, ", ") .. " };\n\t\tcounter;\n\t}\n"
end

-- The ruleset of a loaded configuration.
function render.ruleset(fw)
	local out = { "table inet fw4", "flush table inet fw4" }
	for _, line in ipairs(includes(fw, "ruleset-pre", "")) do out[#out + 1] = line end
	out[#out + 1] = "\ntable inet fw4 {"
	if fw.defaults.flow_offloading then flowtable(out, fw) end
	for _, s in ipairs(fw.sets) do out[#out + 1] = s .. "\n" end
	for _, z in ipairs(fw.zones) do out[#out + 1] = define(z) end
	out[#out + 1] = "\n\t#\n\t# User includes\n\t#\n"
	out[#out + 1] = '\tinclude "/etc/nftables.d/*.nft"'
	for _, line in ipairs(includes(fw, "table-pre", "\t")) do out[#out + 1] = line end
	out[#out + 1] = ""
	filter(out, fw)
	for _, z in ipairs(fw.zones) do zone_chains(out, fw, z) end
	nat(out, fw)
	raw_and_mangle(out, fw)
	for _, line in ipairs(includes(fw, "table-post", "\t")) do out[#out + 1] = line end
	out[#out + 1] = "}"
	for _, line in ipairs(includes(fw, "ruleset-post", "")) do out[#out + 1] = line end
	return table.concat(out, "\n") .. "\n"
end

return render
