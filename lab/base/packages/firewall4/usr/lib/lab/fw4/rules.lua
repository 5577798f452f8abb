-- Sections of type rule, forwarding, redirect, nat and ipset as nft rules in the right chains.
-- Stands for parse_rule and its kin in openwrt/firewall4 root/usr/share/ucode/fw4.uc and templates/rule.uc.
local match = require("lab.fw4.match")
local options = require("lab.fw.options")

local rules = {}

local function add(fw, chain, text)
	fw.chains[chain] = fw.chains[chain] or {}
	table.insert(fw.chains[chain], text)
end

local function comment(r, fallback) return ' comment "!fw4: ' .. (r.name or fallback):gsub('"', "'") .. '"' end

local function skip(r, text)
	options.warn(r.title .. " " .. text)
	return nil
end

-- The families a section is for: [4]/[6] -> which addresses restrict it; nil with a warning when they contradict.
local function families(r, fields)
	local wanted = { r.family ~= 6 and 4 or nil, r.family ~= 4 and 6 or nil }
	local out, restricted = {}, false
	for _, family in pairs(wanted) do
		local fits = true
		for _, field in ipairs(fields) do
			local items = r[field]
			if items and items.text then items = { items } end
			if items and #items > 0 then
				local found = false
				for _, a in ipairs(items) do found = found or a.family == family end
				fits = fits and found
				restricted = true
			end
		end
		if fits then out[#out + 1] = family end
	end
	if #out == 0 then return skip(r, "is restricted to IPv4 but referenced addresses are IPv6 only or mixed, skipping") end
	table.sort(out)
	return out, restricted
end

local function protocols(r)
	local list = r.proto and #r.proto > 0 and r.proto or { { text = "tcp" }, { text = "udp" } }
	local out = {}
	for _, p in ipairs(list) do
		if p.text == "tcpudp" then
			out[#out + 1] = { text = "tcp" }
			out[#out + 1] = { text = "udp" }
		else
			out[#out + 1] = p
		end
	end
	return out
end

-- The matches of a section for one family and protocol: a list of texts (ICMP types can need two), or nil for none.
-- `nofamily` leaves out what an address or a family-bound protocol already says.
local function matches(r, family, protocol, restricted, both)
	local text = ""
	local p = protocol.text
	if p == "icmp" and family == 6 then p = "ipv6-icmp" end
	if p == "ipv6-icmp" and family == 4 then return {} end
	local bound = restricted or p == "icmp" or p == "ipv6-icmp"
	if not both and not bound then text = text .. "meta nfproto ipv" .. family .. " " end
	if p == "icmp" and not (r.icmp_type and #r.icmp_type > 0) then text = text .. "meta nfproto ipv4 " end
	local ported = p == "tcp" or p == "udp" or p == "sctp" or p == "udplite" or p == "dccp"
	local has_ports = ported and ((r.src_port and #r.src_port > 0) or (r.dest_port and #r.dest_port > 0))
	local typed = (p == "icmp" or p == "ipv6-icmp") and r.icmp_type and #r.icmp_type > 0
	if not has_ports and not typed then text = text .. match.protocol({ text = p, negative = protocol.negative }) end
	text = text .. match.addresses(family, "saddr", r.src_ip) .. match.addresses(family, "daddr", r.dest_ip) .. match.macs(r.src_mac)
	if r.ipset then
		local dir = r.ipset.directions:match("dst") and "daddr" or "saddr"
		text = text .. (family == 4 and "ip " or "ip6 ") .. dir .. (r.ipset.negative and " != @" or " @") .. r.ipset.name .. " "
	end
	if has_ports then
		local a, b = match.ports(p, "sport", r.src_port), match.ports(p, "dport", r.dest_port)
		if not a or not b then return {} end
		text = text .. a .. b
	end
	text = text .. match.mark(r.mark)
	if not typed then return { text } end
	local out = {}
	for _, t in ipairs(match.icmp(family, r.icmp_type)) do out[#out + 1] = text .. t end
	return out
end

local function zone_of(fw, r, option)
	local name = r[option]
	if name == nil or name == "*" then return true, name == "*" and { any = true } or nil end
	local z = fw.by_name[name]
	if not z then
		options.warn(r.title .. " option '" .. option .. "' specifies invalid value '" .. name .. "'")
		skip(r, "skipped due to invalid options")
		return false
	end
	return true, z
end

local function emit(fw, r, chain, statement, fallback, prefix)
	if r.ipset then
		local family = fw.set_families[r.ipset.name]
		if not family then return skip(r, "references unknown set '" .. r.ipset.name .. "'") end
		r.family = family
	end
	local fams, restricted = families(r, { "src_ip", "dest_ip", "snat_ip" })
	if not fams then return end
	restricted = restricted or r.ipset ~= nil
	local limit = match.limit(r.limit, r.limit_burst)
	local counter = r.counter == false and "" or "counter "
	local log = r.log and ('log prefix "' .. (r.log == "1" and (r.name or fallback) .. ": " or r.log .. ": ") .. '" ') or ""
	for _, protocol in ipairs(protocols(r)) do
		-- One rule for both families when nothing ties it to one.
		local icmp = protocol.text == "icmp" or protocol.text == "ipv6-icmp"
		local both = #fams == 2 and not restricted and not icmp and not r.ipset
		for n, family in ipairs(fams) do
			if not both or n == 1 then
				for _, m in ipairs(matches(r, family, protocol, restricted, both)) do
					add(fw, chain, (prefix or "") .. m .. limit .. counter .. log .. statement(family) .. comment(r, fallback))
				end
			end
		end
	end
end

function rules.rule(fw, r)
	if not r then return end
	local ok_src, src = zone_of(fw, r, "src")
	local ok_dest, dest = zone_of(fw, r, "dest")
	if not ok_src or not ok_dest then return end
	local target = r.target
	if not target then return skip(r, "has no target specified, defaulting to DROP") end
	local prefix = ""
	if r.device then prefix = match.devices(r.direction == "out" and "oifname" or "iifname", { r.device })[1] end
	local chain
	local fallback = "@rule[" .. r.index .. "]"
	if target == "notrack" then
		if not src or src.any then return skip(r, "must specify a source zone for target NOTRACK") end
		return emit(fw, r, "notrack_" .. src.name, function() return "notrack" end, fallback, prefix)
	end
	if target == "mark" then
		if not r.set_mark and not r.set_xmark then return skip(r, "must specify either 'set_mark' or 'set_xmark' for target MARK") end
		if dest and dest.any and src then
			chain = "mangle_prerouting"
		elseif src and dest then
			chain = "mangle_forward"
		elseif src then
			chain = "mangle_input"
		else
			chain = "mangle_output"
		end
		for _, into in ipairs(src and not src.any and match.devices("iifname", src.devices) or { "" }) do
			for _, out in ipairs(dest and not dest.any and match.devices("oifname", dest.devices) or { "" }) do
				emit(fw, r, chain, function() return match.set_mark(r.set_mark, r.set_xmark) end, fallback, prefix .. into .. out)
			end
		end
		return
	end
	if target ~= "accept" and target ~= "drop" and target ~= "reject" then return options.missing("rule target " .. target) end
	if src and dest then
		chain = src.any and "forward" or "forward_" .. src.name
	elseif src then
		chain = src.any and "input" or "input_" .. src.name
	elseif dest then
		chain = dest.any and "output" or "output_" .. dest.name
	else
		chain = "output"
	end
	local verdict = target == "reject" and "jump handle_reject" or target
	if dest and not dest.any then
		verdict = "jump " .. target .. "_to_" .. dest.name
		fw.used = fw.used or {}
		fw.used[target .. "_to_" .. dest.name] = true
	end
	emit(fw, r, chain, function() return verdict end, fallback, prefix)
end

function rules.forwarding(fw, f)
	if not f then return end
	local ok_src, src = zone_of(fw, f, "src")
	local ok_dest, dest = zone_of(fw, f, "dest")
	if not ok_src or not ok_dest or not src or not dest then return end
	local family = f.family and f.family ~= 0 and "meta nfproto ipv" .. f.family .. " " or ""
	local label = string.format(' comment "!fw4: Accept %s to %s forwarding"', f.src, f.dest)
	local verdict = dest.any and "accept" or "jump accept_to_" .. dest.name
	add(fw, src.any and "forward" or "forward_" .. src.name, family .. verdict .. label)
	fw.used = fw.used or {}
	if not dest.any then fw.used["accept_to_" .. dest.name] = true end
end

function rules.nat(fw, r)
	if not r then return end
	local ok_src, src = zone_of(fw, r, "src")
	if not ok_src then return end
	local chain = src and not src.any and "srcnat_" .. src.name or "srcnat"
	local prefix = r.device and match.devices("oifname", { r.device })[1] or ""
	local target = r.target or "masquerade"
	if target == "snat" and not r.snat_ip and not r.snat_port then return skip(r, "must specify either 'snat_ip' or 'snat_port' for target SNAT") end
	local restricted = r.snat_ip and { r.snat_ip } or nil
	r.proto = r.proto or { { text = "any" } }
	local port = r.snat_port and ":" .. r.snat_port.low .. (r.snat_port.high ~= r.snat_port.low and "-" .. r.snat_port.high or "") or ""
	r.family = r.family or (restricted and restricted[1].family) or 4
	emit(fw, r, chain, function(family)
		if target == "accept" then return "accept" end
		if target == "masquerade" then return "masquerade" end
		return "snat " .. (family == 4 and "ip" or "ip6") .. " to " .. (r.snat_ip and (family == 6 and port ~= "" and "[" .. r.snat_ip.text .. "]" or r.snat_ip.text) or "") .. port
	end, "@nat[" .. r.index .. "]", prefix)
end

function rules.redirect(fw, r)
	if not r then return end
	local ok_src, src = zone_of(fw, r, "src")
	local ok_dest, dest = zone_of(fw, r, "dest")
	if not ok_src or not ok_dest then return end
	if (r.target or "dnat") ~= "dnat" or not src or src.any then return options.missing("redirect other than DNAT from a zone") end
	if dest and dest ~= src and r.reflection ~= false and r.dest_ip then options.missing("redirect reflection (set reflection to 0)") end
	if dest and not dest.any then
		src.dnat, dest.dnat = true, true
	else
		src.dnat = true
	end
	local shown = { title = r.title, name = r.name, family = r.family or (r.dest_ip and r.dest_ip.family), proto = r.proto, src_ip = r.src_ip, src_mac = r.src_mac, src_port = r.src_port,
		dest_ip = r.src_dip, dest_port = r.src_dport, limit = r.limit, limit_burst = r.limit_burst, mark = r.mark, counter = r.counter, log = r.log }
	local port = r.dest_port and ":" .. r.dest_port.low .. (r.dest_port.high ~= r.dest_port.low and "-" .. r.dest_port.high or "") or ""
	emit(fw, shown, "dstnat_" .. src.name, function(family)
		if not r.dest_ip then return "redirect" .. (port ~= "" and " to " .. port or "") end
		local host = family == 6 and port ~= "" and "[" .. r.dest_ip.text .. "]" or r.dest_ip.text
		return "dnat " .. (family == 4 and "ip" or "ip6") .. " to " .. host .. port
	end, "@redirect[" .. r.index .. "]")
end

local set_types = { ip = { [4] = "ipv4_addr", [6] = "ipv6_addr" }, net = { [4] = "ipv4_addr", [6] = "ipv6_addr" }, port = "inet_service", mac = "ether_addr" }

function rules.ipset(fw, s)
	if not s then return end
	if not s.name then return skip(s, "must have a name") end
	local family = s.family == 6 and 6 or 4
	fw.set_families[s.name] = family
	local types, interval = {}, false
	for _, m in ipairs(s.match or {}) do
		local what = m:match("([^_]+)$")
		local t = set_types[what]
		if not t then return skip(s, "option 'match' specifies invalid value '" .. m .. "'") end
		types[#types + 1] = type(t) == "table" and t[family] or t
		interval = interval or what == "net"
	end
	if s.loadfile then options.missing("ipset option loadfile") end
	local entries = {}
	for _, e in ipairs(s.entry or {}) do entries[#entries + 1] = (e:gsub("%s+", " . ")) end
	local text = { "\tset " .. s.name .. " {", "\t\ttype " .. table.concat(types, " . ") }
	if interval then
		text[#text + 1] = "\t\tauto-merge"
		text[#text + 1] = "\t\tflags interval"
	end
	if s.timeout then text[#text + 1] = "\t\ttimeout " .. math.tointeger(s.timeout) .. "s" end
	if s.maxelem then text[#text + 1] = "\t\tsize " .. math.tointeger(s.maxelem) end
	if #entries > 0 then text[#text + 1] = "\t\telements = { " .. table.concat(entries, ", ") .. " }" end
	text[#text + 1] = "\t}"
	fw.sets[#fw.sets + 1] = table.concat(text, "\n")
end

return rules
