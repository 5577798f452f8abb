-- /etc/config/firewall as iptables rules in fw3's chains, for one address family at a time.
-- Stands for openwrt/firewall3 defaults.c, zones.c, rules.c, forwards.c, snats.c, redirects.c; the text is our own.
local uci = require("lab.uci")
local bus = require("lab.bus")
local options = require("lab.fw.options")

local rules = {}

local function networks()
	local found = {}
	for _, i in ipairs((bus.call("network.interface", "dump") or {}).interface or {}) do found[i.interface] = i.l3_device end
	return found
end

-- Read everything once; nil and a message when uci refuses the file.
function rules.load()
	options.style = "fw3"
	local ok, package = pcall(uci.load, "firewall")
	if not ok then return nil, tostring(package) end
	if not package then return nil, "Failed to load /etc/config/firewall" end
	local fw = { zones = {}, by_name = {}, rule = {}, forwarding = {}, nat = {}, redirect = {}, include = {}, defaults = {} }
	local counts, nets = {}, networks()
	for _, s in ipairs(package.sections) do
		counts[s.type] = (counts[s.type] or -1) + 1
		if s.type == "defaults" then
			fw.defaults = options.read(s, counts[s.type]) or {}
		elseif s.type == "zone" then
			local z = options.read(s, counts[s.type])
			if z and z.name then
				z.devices = options.zone_devices(z, function(name) return nets[name] end)
				fw.zones[#fw.zones + 1] = z
				fw.by_name[z.name] = z
			end
		elseif fw[s.type] and s.type ~= "zones" then
			local r = options.read(s, counts[s.type])
			if r then table.insert(fw[s.type], r) end
		else
			options.missing("section type " .. s.type .. " (fw3)")
		end
	end
	local d = fw.defaults
	d.input, d.output, d.forward = d.input or "drop", d.output or "drop", d.forward or "drop"
	for _, z in ipairs(fw.zones) do
		for _, p in ipairs({ "input", "output", "forward" }) do z[p] = z[p] or d[p] end
	end
	return fw
end

local function quote(text) return '"' .. text:gsub('["\\]', "\\%0") .. '"' end

local function comment(r, kind) return "-m comment --comment " .. quote("!fw3: " .. (r.name or "@" .. kind .. "[" .. r.index .. "]")) end

-- Tables of chains with rules, in order of creation.
local function book(family)
	local b = { family = family, tables = {}, order = { "filter", "nat", "mangle", "raw" } }
	for _, t in ipairs(b.order) do b.tables[t] = { chains = {}, order = {}, policies = {} } end
	function b.chain(t, name, policy)
		local tab = b.tables[t]
		if not tab.chains[name] then
			tab.chains[name] = {}
			tab.order[#tab.order + 1] = name
			tab.policies[name] = policy
		end
		return tab.chains[name]
	end
	-- Every rule of ours is marked, so that a reload can tell what others have put into the same chains.
	function b.add(t, name, text)
		table.insert(b.chain(t, name), text:find("!fw3", 1, true) and text or '-m comment --comment "!fw3" ' .. text)
	end
	return b
end

local function zone_in(fw, r, option)
	local name = r[option]
	if name == nil then return true, nil end
	if name == "*" then return true, { any = true } end
	if not fw.by_name[name] then
		options.warn("Option " .. r.path .. "." .. option .. " has invalid value '" .. name .. "'")
		return false
	end
	return true, fw.by_name[name]
end


-- Every combination of protocol, addresses and ports is one rule, as fw3 writes them.
local function each_match(b, r, fn, kind)
	if r.family and r.family ~= 0 and r.family ~= b.family then return end
	local function own(field)
		local items = r[field] or {}
		local found = {}
		for _, a in ipairs(items) do
			if a.family == b.family then found[#found + 1] = a end
		end
		if #items > 0 and #found == 0 then return nil end
		return #found > 0 and found or { false }
	end
	local sources, targets = own("src_ip"), own("dest_ip")
	if not sources or not targets then return end
	local protocols = r.proto and #r.proto > 0 and r.proto or { { text = "tcp" }, { text = "udp" } }
	local function address(flag, a)
		if not a then return "" end
		if a.text:find("-", 1, true) then
			return "-m iprange " .. (a.negative and "! " or "") .. (flag == "-s" and "--src-range " or "--dst-range ") .. a.text .. " "
		end
		return (a.negative and "! " or "") .. flag .. " " .. a.text .. " "
	end
	local function port(p, flag, x)
		if not x then return "" end
		return "-m " .. p .. " " .. (x.negative and "! " or "") .. flag .. " " .. x.low .. (x.high ~= x.low and ":" .. x.high or "") .. " "
	end
	local expanded = {}
	for _, p in ipairs(protocols) do
		if p.text == "tcpudp" then
			expanded[#expanded + 1] = { text = "tcp" }
			expanded[#expanded + 1] = { text = "udp" }
		else
			expanded[#expanded + 1] = p
		end
	end
	for _, p in ipairs(expanded) do
		local name = p.text
		if name == "icmp" and b.family == 6 then name = "ipv6-icmp" end
		local fits = not (name == "ipv6-icmp" and b.family == 4)
		local ported = name == "tcp" or name == "udp"
		local types = (name == "icmp" or name == "ipv6-icmp") and r.icmp_type and #r.icmp_type > 0 and r.icmp_type or { false }
		local sports = ported and r.src_port and #r.src_port > 0 and r.src_port or { false }
		local dports = ported and r.dest_port and #r.dest_port > 0 and r.dest_port or { false }
		for _, s in ipairs(fits and sources or {}) do
			for _, t in ipairs(targets) do
				for _, sp in ipairs(sports) do
					for _, dp in ipairs(dports) do
						for _, i in ipairs(types) do
							local text = name == "any" and "" or (p.negative and "! " or "") .. "-p " .. name .. " "
							text = text .. address("-s", s) .. address("-d", t) .. port(name, "--sport", sp) .. port(name, "--dport", dp)
							if i and i[b.family] then
								text = text .. (b.family == 4 and "-m icmp --icmp-type " or "-m icmp6 --icmpv6-type ") .. i[b.family]:gsub("%.", "/") .. " "
							end
							for _, m in ipairs(r.src_mac or {}) do text = text .. "-m mac " .. (m.negative and "! " or "") .. "--mac-source " .. m.text .. " " end
							if r.mark then text = text .. string.format("-m mark %s--mark 0x%x/0x%x ", r.mark.negative and "! " or "", r.mark.mark, r.mark.mask) end
							if r.limit then text = text .. "-m limit --limit " .. r.limit.rate .. "/" .. r.limit.unit .. " " .. (r.limit_burst and "--limit-burst " .. math.tointeger(r.limit_burst) .. " " or "") end
							if r.extra then text = text .. r.extra .. " " end
							if not (i and not i[b.family]) then fn(text .. comment(r, kind)) end
						end
					end
				end
			end
		end
	end
end

local function one_rule(fw, b, r)
	local ok_src, src = zone_in(fw, r, "src")
	local ok_dest, dest = zone_in(fw, r, "dest")
	if not ok_src or not ok_dest then return end
	local target = r.target or "drop"
	local device = r.device and (r.direction == "out" and "-o " or "-i ") .. r.device .. " " or ""
	if target == "notrack" then
		-- 18.06 appends to a chain it never makes: the rule is not installed.
		io.stderr:write("iptc_append_entry(): No chain/target/match by that name\n")
		return
	end
	if target == "mark" then
		local m = r.set_xmark or r.set_mark
		if not m then return end
		local chain = not src and "OUTPUT" or dest and (dest.any and "PREROUTING" or "FORWARD") or "INPUT"
		if src and not dest then chain = "PREROUTING" end
		local action = string.format("-j MARK --set-xmark 0x%x/0x%x", m.mark, m.mask | (r.set_mark and not r.set_xmark and m.mark or 0))
		for _, d in ipairs(src and not src.any and src.devices or { false }) do
			each_match(b, r, function(t) b.add("mangle", chain, device .. (d and "-i " .. d .. " " or "") .. t .. " " .. action) end, "rule")
		end
		return
	end
	local chain
	if src and dest then
		chain = src.any and "FORWARD" or "zone_" .. src.name .. "_forward"
	elseif src then
		chain = src.any and "INPUT" or "zone_" .. src.name .. "_input"
	elseif dest then
		chain = dest.any and "OUTPUT" or "zone_" .. dest.name .. "_output"
	else
		chain = "OUTPUT"
	end
	local verdict = target == "reject" and "reject" or target:upper()
	if dest and not dest.any then
		verdict = "zone_" .. dest.name .. "_dest_" .. target:upper()
		fw.used[verdict] = true
	end
	each_match(b, r, function(t) b.add("filter", chain, device .. t .. " -j " .. verdict) end, "rule")
end

local function policy_of(d, hook) return ({ INPUT = d.input, FORWARD = d.forward, OUTPUT = d.output })[hook] end

local function hooks(fw, b)
	local d = fw.defaults
	for _, hook in ipairs({ "INPUT", "FORWARD", "OUTPUT" }) do b.chain("filter", hook, policy_of(d, hook) == "accept" and "ACCEPT" or "DROP") end
	b.chain("filter", "reject")
	b.add("filter", "reject", "-p tcp -j REJECT --reject-with tcp-reset")
	b.add("filter", "reject", "-j REJECT --reject-with " .. (b.family == 4 and "icmp-port-unreachable" or "port-unreach"))
	if d.syn_flood or d.synflood_protect then
		local rate = d.synflood_rate or { rate = 25, unit = "second" }
		b.add("filter", "syn_flood", "-p tcp -m tcp --tcp-flags FIN,SYN,RST,ACK SYN -m limit --limit " .. rate.rate .. "/" .. rate.unit .. " --limit-burst " .. math.tointeger(d.synflood_burst or 50) .. " -j RETURN")
		b.add("filter", "syn_flood", "-j DROP")
	end
	for _, hook in ipairs({ "INPUT", "FORWARD", "OUTPUT" }) do
		local lo = ({ INPUT = "-i lo", OUTPUT = "-o lo" })[hook]
		if lo then b.add("filter", hook, lo .. " -j ACCEPT") end
		local custom = ({ INPUT = "input_rule", OUTPUT = "output_rule", FORWARD = "forwarding_rule" })[hook]
		b.chain("filter", custom)
		b.add("filter", hook, '-m comment --comment "!fw3: Custom ' .. hook:lower() .. ' rule chain" -j ' .. custom)
		b.add("filter", hook, "-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT")
		if d.drop_invalid then b.add("filter", hook, "-m conntrack --ctstate INVALID -j DROP") end
	end
	if d.syn_flood or d.synflood_protect then b.add("filter", "INPUT", "-p tcp -m tcp --tcp-flags FIN,SYN,RST,ACK SYN -j syn_flood") end
end

local function masquerade(b, z)
	if not z.masq or b.family ~= 4 then return end
	for _, s in ipairs(z.masq_src and #z.masq_src > 0 and z.masq_src or { false }) do
		for _, t in ipairs(z.masq_dest and #z.masq_dest > 0 and z.masq_dest or { false }) do
			local text = (s and (s.negative and "! " or "") .. "-s " .. s.text .. " " or "") .. (t and (t.negative and "! " or "") .. "-d " .. t.text .. " " or "")
			b.add("nat", "zone_" .. z.name .. "_postrouting", text .. "-j MASQUERADE")
		end
	end
end

local function zone_end(fw, b, z)
	local n = "zone_" .. z.name
	b.add("filter", n .. "_input", "-m conntrack --ctstate DNAT -j ACCEPT")
	b.add("filter", n .. "_input", "-j " .. n .. "_src_" .. z.input:upper())
	b.add("filter", n .. "_output", "-j " .. n .. "_dest_" .. z.output:upper())
	b.add("filter", n .. "_forward", "-m conntrack --ctstate DNAT -j ACCEPT")
	b.add("filter", n .. "_forward", "-j " .. n .. "_dest_" .. z.forward:upper())
	for _, target in ipairs({ "ACCEPT", "REJECT", "DROP" }) do
		local verdict = target == "REJECT" and "reject" or target
		b.chain("filter", n .. "_src_" .. target)
		b.chain("filter", n .. "_dest_" .. target)
		for _, d in ipairs(z.devices) do
			b.add("filter", n .. "_src_" .. target, "-i " .. d .. " -j " .. verdict)
			if target == "ACCEPT" and z.masq and not z.masq_allow_invalid then
				b.add("filter", n .. "_dest_ACCEPT", "-o " .. d .. ' -m conntrack --ctstate INVALID -m comment --comment "!fw3: Prevent NAT leakage" -j DROP')
			end
			b.add("filter", n .. "_dest_" .. target, "-o " .. d .. " -j " .. verdict)
		end
	end
	for _, d in ipairs(z.devices) do
		b.add("filter", "INPUT", "-i " .. d .. " -j " .. n .. "_input")
		b.add("filter", "OUTPUT", "-o " .. d .. " -j " .. n .. "_output")
		b.add("filter", "FORWARD", "-i " .. d .. " -j " .. n .. "_forward")
		b.add("nat", "PREROUTING", "-i " .. d .. " -j " .. n .. "_prerouting")
		b.add("nat", "POSTROUTING", "-o " .. d .. " -j " .. n .. "_postrouting")
		if z.mtu_fix then b.add("mangle", "FORWARD", "-o " .. d .. " -p tcp -m tcp --tcp-flags SYN,RST SYN -j TCPMSS --clamp-mss-to-pmtu") end
	end
	masquerade(b, z)
end

local function translations(fw, b)
	for _, r in ipairs(fw.nat) do
		local ok, src = zone_in(fw, r, "src")
		if ok and (not r.snat_ip or r.snat_ip.family == b.family) and not (b.family == 6 and not r.family and not r.snat_ip) then
			r.proto = r.proto or { { text = "any" } }
			local action = ({ masquerade = "-j MASQUERADE", accept = "-j ACCEPT", snat = "-j SNAT --to-source " .. (r.snat_ip and r.snat_ip.text or "") .. (r.snat_port and ":" .. r.snat_port.low or "") })[r.target or "masquerade"]
			local chain = src and not src.any and "zone_" .. src.name .. "_postrouting" or "POSTROUTING"
			each_match(b, r, function(t) b.add("nat", chain, (r.device and "-o " .. r.device .. " " or "") .. t .. " " .. action) end, "nat")
		end
	end
	for _, r in ipairs(fw.redirect) do
		local ok, src = zone_in(fw, r, "src")
		if ok and src and not src.any and (r.target or "dnat") == "dnat" and r.dest_ip and r.dest_ip.family == b.family then
			if r.reflection ~= false and r.dest then options.missing("redirect reflection (set reflection to 0)") end
			local shown = { name = r.name, index = r.index, path = r.path, family = r.family, proto = r.proto, src_ip = r.src_ip, src_port = r.src_port, dest_ip = r.src_dip, dest_port = r.src_dport, mark = r.mark, limit = r.limit, limit_burst = r.limit_burst }
			local to = r.dest_ip.text .. (r.dest_port and ":" .. r.dest_port.low .. (r.dest_port.high ~= r.dest_port.low and "-" .. r.dest_port.high or "") or "")
			each_match(b, shown, function(t) b.add("nat", "zone_" .. src.name .. "_prerouting", t .. " -j DNAT --to-destination " .. to) end, "redirect")
		end
	end
end

-- Chains and rules of others in iptables-save text: { table = { chains = {names}, rules = {lines} } }.
local function foreign(saved, b)
	local found, t = {}, nil
	for line in saved:gmatch("[^\n]+") do
		t = line:match("^%*(%w+)") or t
		found[t or ""] = found[t or ""] or { chains = {}, rules = {} }
		local chain = line:match("^:(%S+) ")
		if chain and b.tables[t] and not b.tables[t].chains[chain] and line:find(" - ", 1, true) and not chain:match("^zone_") then
			table.insert(found[t].chains, chain)
		elseif line:match("^%-A ") and not line:find("!fw3", 1, true) then
			table.insert(found[t].rules, line)
		end
	end
	return found
end

-- The rules of one family as iptables-restore text; what others have put into the tables (`saved`, iptables-save's text)
-- is kept, before ours.
function rules.text(fw, family, saved)
	local b = book(family)
	fw.used = {}
	for _, hook in ipairs({ "PREROUTING", "INPUT", "OUTPUT", "POSTROUTING" }) do b.chain("nat", hook, "ACCEPT") end
	for _, hook in ipairs({ "PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING" }) do b.chain("mangle", hook, "ACCEPT") end
	for _, hook in ipairs({ "PREROUTING", "OUTPUT" }) do b.chain("raw", hook, "ACCEPT") end
	for _, pair in ipairs({ { "PREROUTING", "prerouting_rule" }, { "POSTROUTING", "postrouting_rule" } }) do
		b.chain("nat", pair[2])
		b.add("nat", pair[1], "-j " .. pair[2])
	end
	hooks(fw, b)
	for _, z in ipairs(fw.zones) do
		local n = "zone_" .. z.name
		for _, pair in ipairs({ { "input", "input" }, { "output", "output" }, { "forward", "forwarding" } }) do
			local kind, prefix = pair[1], pair[2]
			b.chain("filter", n .. "_" .. kind)
			b.chain("filter", prefix .. "_" .. z.name .. "_rule")
			b.add("filter", n .. "_" .. kind, "-j " .. prefix .. "_" .. z.name .. "_rule")
		end
		for _, kind in ipairs({ "prerouting", "postrouting" }) do
			b.chain("nat", n .. "_" .. kind)
			b.chain("nat", kind .. "_" .. z.name .. "_rule")
			b.add("nat", n .. "_" .. kind, "-j " .. kind .. "_" .. z.name .. "_rule")
		end
	end
	for _, r in ipairs(fw.rule) do one_rule(fw, b, r) end
	for _, f in ipairs(fw.forwarding) do
		local ok_src, src = zone_in(fw, f, "src")
		local ok_dest, dest = zone_in(fw, f, "dest")
		if ok_src and ok_dest and src and dest and not src.any and (not f.family or f.family == 0 or f.family == family) then
			b.add("filter", "zone_" .. src.name .. "_forward", "-j " .. (dest.any and "ACCEPT" or "zone_" .. dest.name .. "_dest_ACCEPT"))
		end
	end
	translations(fw, b)
	for _, z in ipairs(fw.zones) do zone_end(fw, b, z) end
	for _, hook in ipairs({ "INPUT", "FORWARD", "OUTPUT" }) do
		if policy_of(fw.defaults, hook) == "reject" then b.add("filter", hook, "-j reject") end
	end
	local out, others = {}, foreign(saved or "", b)
	for _, t in ipairs(b.order) do
		out[#out + 1] = "*" .. t
		local other = others[t] or { chains = {}, rules = {} }
		local tab = b.tables[t]
		for _, name in ipairs(tab.order) do out[#out + 1] = ":" .. name .. " " .. (tab.policies[name] or "-") .. " [0:0]" end
		for _, name in ipairs(other.chains) do out[#out + 1] = ":" .. name .. " - [0:0]" end
		for _, rule in ipairs(other.rules) do out[#out + 1] = rule end
		for _, name in ipairs(tab.order) do
			for _, rule in ipairs(tab.chains[name]) do out[#out + 1] = "-A " .. name .. " " .. rule end
		end
		out[#out + 1] = "COMMIT"
	end
	return table.concat(out, "\n") .. "\n"
end

return rules
