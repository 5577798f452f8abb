-- nft text of the parts of a rule: addresses, ports, protocols, types, limits, marks. Nothing is decided here.
local match = {}

local function set(items)
	if #items == 1 then return items[1] end
	return "{ " .. table.concat(items, ", ") .. " }"
end
match.set = set

function match.quote(text) return '"' .. text:gsub('"', "'") .. '"' end

local function device_name(name) return match.quote((name:gsub("%+$", "*"))) end

-- iifname / oifname texts for a list of devices: one for all plain names, one for each with a wildcard (nft takes those
-- in no set); none for an empty list.
function match.devices(verb, list)
	local names, texts = {}, {}
	for _, d in ipairs(list) do
		if not d:find("%+$") then names[#names + 1] = device_name(d) end
	end
	if #names > 0 then texts[1] = verb .. " " .. set(names) .. " " end
	for _, d in ipairs(list) do
		if d:find("%+$") then texts[#texts + 1] = verb .. " " .. device_name(d) .. " " end
	end
	return texts
end

local function split(items)
	local plain, negative = {}, {}
	for _, i in ipairs(items) do
		local into = i.negative and negative or plain
		into[#into + 1] = i.text
	end
	return plain, negative
end

-- "ip saddr …": the items of one family, positive and negative apart.
function match.addresses(family, field, items)
	local own = {}
	for _, i in ipairs(items or {}) do
		if i.family == family then own[#own + 1] = i end
	end
	local plain, negative = split(own)
	local head = (family == 4 and "ip " or "ip6 ") .. field .. " "
	local text = ""
	if #plain > 0 then text = text .. head .. set(plain) .. " " end
	if #negative > 0 then text = text .. head .. "!= " .. set(negative) .. " " end
	return text
end

-- "tcp dport …"; nil when a port is 0, which makes the real one drop the rule without a word.
function match.ports(protocol, field, items)
	local own = {}
	for _, p in ipairs(items or {}) do
		if p.low == 0 and p.high == 0 then return nil end
		own[#own + 1] = { negative = p.negative, text = p.low == p.high and tostring(p.low) or p.low .. "-" .. p.high }
	end
	local plain, negative = split(own)
	local text = ""
	if #plain > 0 then text = text .. protocol .. " " .. field .. " " .. set(plain) .. " " end
	if #negative > 0 then text = text .. protocol .. " " .. field .. " != " .. set(negative) .. " " end
	return text
end

function match.macs(items)
	local plain, negative = split(items or {})
	local text = ""
	if #plain > 0 then text = text .. "ether saddr " .. set(plain) .. " " end
	if #negative > 0 then text = text .. "ether saddr != " .. set(negative) .. " " end
	return text
end

-- The one or two forms of a list of ICMP types: by type alone, and by type and code.
function match.icmp(family, items)
	local types, codes, found = {}, {}, {}
	for _, i in ipairs(items or {}) do
		local t = i[family]
		if t and t:find(".", 1, true) then
			codes[#codes + 1] = (t:gsub("%.", " . "))
		elseif t then
			types[#types + 1] = t
		end
	end
	local name = family == 4 and "icmp" or "icmpv6"
	if #types > 0 then found[#found + 1] = name .. " type " .. set(types) .. " " end
	if #codes > 0 then found[#found + 1] = name .. " type . " .. name .. " code { " .. table.concat(codes, ", ") .. " } " end
	return found
end

function match.limit(limit, burst)
	if not limit then return "" end
	return "limit rate " .. (limit.negative and "over " or "") .. limit.rate .. "/" .. limit.unit .. (burst and " burst " .. burst .. " packets" or "") .. " "
end

function match.mark(mark)
	if not mark then return "" end
	local op = mark.negative and "!=" or "=="
	if mark.masked then return string.format("meta mark & 0x%08x %s 0x%08x ", mark.mask, op, mark.mark) end
	return string.format("meta mark %s0x%08x ", mark.negative and "!= " or "", mark.mark)
end

-- The statement of target MARK: set_xmark clears the mask's bits and flips the value's; set_mark clears the value's too.
function match.set_mark(set_mark, set_xmark)
	local m = set_xmark or set_mark
	if not m.masked then return string.format("meta mark set 0x%08x", m.mark) end
	local mask = set_mark and not set_xmark and (m.mask | m.mark) or m.mask
	return string.format("meta mark set mark and 0x%08x xor 0x%08x", ~mask & 0xffffffff, m.mark)
end

function match.protocol(p)
	if p.text == "any" then return "" end
	local name = p.text
	local number = { igmp = "2", vrrp = "112", gre = "47", ospf = "89" }
	return "meta l4proto " .. (p.negative and "!= " or "") .. (number[name] or name) .. " "
end

return match
