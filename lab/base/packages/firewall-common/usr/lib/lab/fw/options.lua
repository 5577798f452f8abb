-- Options of /etc/config/firewall: which exist, how their values read, and what fw4 says about wrong ones.
-- Stands for the parsing half of openwrt/firewall4 root/usr/share/ucode/fw4.uc and of openwrt/firewall3 options.c. A wrong
-- value skips the section, an unknown option is only a warning: the rule comes out without it, as with the real ones.
local uci = require("lab.uci")
local address = require("lab.address")

-- style: whose messages and habits, "fw4" or "fw3".
local options = { warnings = {}, unsupported = {}, style = "fw4" }

function options.warn(text)
	options.warnings[#options.warnings + 1] = text
	if not options.quiet then io.stderr:write(options.style == "fw4" and "[!] " or "Warning: ", text, "\n") end
end

function options.missing(text) options.unsupported[#options.unsupported + 1] = "firewall " .. text end

local function title(s, index)
	local name = uci.value(s, "name")
	local label = s.anonymous and string.format("@%s[%d]", s.type, index) or s.name
	return "Section " .. label .. (type(name) == "string" and name ~= s.name and " (" .. name .. ")" or "")
end

local readers = {}

function readers.string(v) return v end
function readers.bool(v)
	local b = uci.bool(v)
	if b == nil then return nil, true end
	return b
end
function readers.number(v)
	local n = v:match("^%d+$") or v:match("^0x%x+$")
	if not n then return nil, true end
	return tonumber(n)
end
function readers.policy(v)
	v = v:lower()
	if v == "accept" or v == "drop" or v == "reject" then return v end
	return nil, true
end
function readers.target(v)
	v = v:lower()
	for _, t in ipairs({ "accept", "reject", "drop", "mark", "notrack", "snat", "dnat", "masquerade", "helper", "dscp" }) do
		if v == t then return v end
	end
	return nil, true
end
function readers.family(v)
	v = v:lower()
	if v == "any" or v == "all" or v == "*" then return 0 end
	if v == "ipv4" or v == "inet" or v == "4" then return 4 end
	if v == "ipv6" or v == "inet6" or v == "6" then return 6 end
	return nil, true
end
function readers.limit(v)
	local negative, rate, unit = v:match("^(!?)%s*(%d+)/?(%a*)$")
	local units = { second = "second", minute = "minute", hour = "hour", day = "day" }
	if not rate then return nil, true end
	for short, full in pairs(units) do
		if unit == "" or short:sub(1, #unit) == unit then return { negative = negative ~= "", rate = rate, unit = unit == "" and "second" or full } end
	end
	return nil, true
end
function readers.mark(v)
	local negative, value, mask = v:match("^(!?)%s*(%w+)/?(%w*)$")
	if not value or not tonumber(value) or (mask ~= "" and not tonumber(mask)) then return nil, true end
	return { negative = negative ~= "", mark = tonumber(value), mask = mask ~= "" and tonumber(mask) or 0xffffffff, masked = mask ~= "" }
end
function readers.port(v)
	local negative, a, b = v:match("^(!?)%s*(%d+)[:%-]?(%d*)$")
	a, b = tonumber(a), tonumber(b)
	if not a or a > 65535 or (b and (b > 65535 or b < a)) then return nil, true end
	return { negative = negative ~= "", low = a, high = b or a }
end
function readers.address(v)
	local negative, text = v:match("^(!?)%s*(.*)$")
	local low, high = text:match("^([^/%-]+)%-([^/%-]+)$")
	if low then
		local family = address.family(low)
		if not family or address.family(high) ~= family then return nil, true end
		return { negative = negative ~= "", family = family, text = low .. "-" .. high }
	end
	local family, host, bits = address.cidr(text)
	if not family then return nil, true end
	local longest = family == 4 and 32 or 128
	return { negative = negative ~= "", family = family, text = bits == longest and host or host .. "/" .. bits }
end
function readers.mac(v)
	local negative, text = v:match("^(!?)%s*(.*)$")
	if not text:match("^%x%x:%x%x:%x%x:%x%x:%x%x:%x%x$") then return nil, true end
	return { negative = negative ~= "", text = text:lower() }
end
function readers.protocol(v)
	local names = { all = "any", any = "any", ["*"] = "any", icmpv6 = "ipv6-icmp", ["58"] = "ipv6-icmp", ["6"] = "tcp", ["17"] = "udp", ["1"] = "icmp" }
	v = v:lower()
	local negative, text = v:match("^(!?)%s*(.*)$")
	if not text:match("^[%w%-]+$") then return nil, true end
	return { negative = negative ~= "", text = names[text] or text }
end

-- name -> { type, code... }; family by table. OpenWrt's names, as fw4's type_classes and icmp tables have them.
local icmp4 = {
	["echo-reply"] = "0", ["pong"] = "0", ["destination-unreachable"] = "3", ["network-unreachable"] = "3.0", ["host-unreachable"] = "3.1",
	["protocol-unreachable"] = "3.2", ["port-unreachable"] = "3.3", ["fragmentation-needed"] = "3.4", ["source-route-failed"] = "3.5",
	["source-quench"] = "4", ["redirect"] = "5", ["network-redirect"] = "5.0", ["host-redirect"] = "5.1", ["echo-request"] = "8", ["ping"] = "8",
	["router-advertisement"] = "9", ["router-solicitation"] = "10", ["time-exceeded"] = "11", ["ttl-zero-during-transit"] = "11.0",
	["ttl-zero-during-reassembly"] = "11.1", ["parameter-problem"] = "12", ["timestamp-request"] = "13", ["timestamp-reply"] = "14",
	["address-mask-request"] = "17", ["address-mask-reply"] = "18",
}
local icmp6 = {
	["destination-unreachable"] = "1", ["no-route"] = "1.0", ["communication-prohibited"] = "1.1", ["beyond-scope"] = "1.2",
	["address-unreachable"] = "1.3", ["port-unreachable"] = "1.4", ["packet-too-big"] = "2.0", ["time-exceeded"] = "3", ["ttl-exceeded"] = "3",
	["ttl-zero-during-transit"] = "3.0", ["parameter-problem"] = "4", ["bad-header"] = "4.0", ["unknown-header-type"] = "4.1", ["unknown-option"] = "4.2",
	["echo-request"] = "128", ["ping"] = "128", ["echo-reply"] = "129", ["pong"] = "129", ["router-solicitation"] = "133", ["router-advertisement"] = "134",
	["neighbour-solicitation"] = "135.0", ["neighbor-solicitation"] = "135.0", ["neighbour-advertisement"] = "136.0",
	["neighbor-advertisement"] = "136.0", ["redirect"] = "137", ["mld-listener-query"] = "130", ["mld-listener-report"] = "131",
}
function readers.icmptype(v)
	local number, code = v:match("^(%d+)/?(%d*)$")
	if number then
		local text = code ~= "" and number .. "." .. code or number
		return { [4] = text, [6] = text }
	end
	if v == "any" then return {} end
	if not icmp4[v] and not icmp6[v] then return nil, true end
	return { [4] = icmp4[v], [6] = icmp6[v] }
end
function readers.dscp(v) return v end
function readers.setmatch(v)
	local negative, name, directions = v:match("^(!?)%s*(%S+)%s*(.*)$")
	if not name then return nil, true end
	return { negative = negative ~= "", name = name, directions = directions }
end

-- option -> reader; a leading * means a list.
local schemas = {
	defaults = {
		input = "policy", output = "policy", forward = "policy", drop_invalid = "bool", tcp_reject_code = "string", any_reject_code = "string",
		syn_flood = "bool", synflood_protect = "bool", synflood_rate = "limit", synflood_burst = "number", tcp_syncookies = "bool", tcp_ecn = "number",
		tcp_window_scaling = "bool", accept_redirects = "bool", accept_source_route = "bool", auto_helper = "bool", custom_chains = "old",
		disable_ipv6 = "old", flow_offloading = "bool", flow_offloading_hw = "bool", auto_includes = "bool",
	},
	zone = {
		enabled = "bool", name = "string", family = "family", network = "*string", device = "*string", subnet = "*address", input = "policy",
		output = "policy", forward = "policy", masq = "bool", masq6 = "bool", masq_allow_invalid = "bool", masq_src = "*address", masq_dest = "*address",
		mtu_fix = "bool", custom_chains = "old", counter = "bool", log = "number", log_limit = "limit", auto_helper = "bool", helper = "*unsupported",
		extra = "old", extra_src = "old", extra_dest = "old",
	},
	forwarding = { enabled = "bool", name = "string", family = "family", src = "string", dest = "string" },
	rule = {
		enabled = "bool", name = "string", family = "family", src = "string", dest = "string", device = "string", direction = "string",
		ipset = "setmatch", helper = "unsupported", set_helper = "unsupported", proto = "*protocol", src_ip = "*address", src_mac = "*mac",
		src_port = "*port", dest_ip = "*address", dest_port = "*port", icmp_type = "*icmptype", extra = "old", limit = "limit", limit_burst = "number",
		utc_time = "unsupported", start_date = "unsupported", stop_date = "unsupported", start_time = "unsupported", stop_time = "unsupported",
		weekdays = "unsupported", monthdays = "old", mark = "mark", set_mark = "mark", set_xmark = "mark", dscp = "unsupported", set_dscp = "dscp",
		counter = "bool", log = "string", log_limit = "limit", target = "target", limit_unit = "unsupported",
	},
	redirect = {
		enabled = "bool", name = "string", family = "family", src = "string", dest = "string", ipset = "unsupported", proto = "*protocol",
		src_ip = "*address", src_mac = "*mac", src_port = "*port", src_dip = "*address", src_dport = "*port", dest_ip = "address", dest_port = "port",
		extra = "old", limit = "limit", limit_burst = "number", mark = "mark", reflection = "bool", reflection_src = "string", reflection_zone = "*string",
		counter = "bool", log = "string", target = "target",
	},
	nat = {
		enabled = "bool", name = "string", family = "family", src = "string", device = "string", ipset = "unsupported", proto = "*protocol",
		src_ip = "*address", src_port = "*port", snat_ip = "address", snat_port = "port", dest_ip = "*address", dest_port = "*port", extra = "old",
		limit = "limit", limit_burst = "number", connlimit_ports = "bool", mark = "mark", log = "string", counter = "bool", target = "target",
	},
	include = { enabled = "bool", name = "string", path = "string", type = "string", fw4_compatible = "bool", family = "old", reload = "old", position = "string", chain = "string" },
	ipset = {
		enabled = "bool", name = "string", comment = "string", family = "family", match = "*string", entry = "*string", loadfile = "string", maxelem = "number",
		timeout = "number", counters = "bool", storage = "old", iprange = "old", portrange = "old", hashsize = "old", netmask = "old", external = "old",
	},
}

-- What fw3 takes and fw4 no longer does; and the other way round (fw3 releases before nft).
local fw3_plain = {
	defaults = { custom_chains = "bool", disable_ipv6 = "bool" },
	zone = { custom_chains = "bool" },
	rule = { extra = "string" },
	include = { family = "string", reload = "bool" },
}
local fw4_only = { auto_includes = true, fw4_compatible = true, position = true, chain = true, dscp = true, set_dscp = true, counter = true, masq6 = true }

-- fw3: after one value it cannot read, later numbers are "invalid" as well (a stale errno, firewall3 options.c).
local poisoned = false
local numbers = { port = true, limit = true, number = true, mark = true }

local function reader_of(s, name)
	local reader = schemas[s.type][name]
	if options.style == "fw3" then
		reader = fw3_plain[s.type] and fw3_plain[s.type][name] or reader
		if fw4_only[name] then reader = nil end
		if reader == "old" then reader = "unsupported" end
	end
	return reader
end

local function say_unknown(out, name)
	options.warn(options.style == "fw4" and out.title .. " specifies unknown option '" .. name .. "'" or "Option " .. out.path .. "." .. name .. " is unknown")
end

local function say_invalid(out, name, value)
	options.warn(options.style == "fw4" and out.title .. " option '" .. name .. "' specifies invalid value '" .. value .. "'"
		or "Option " .. out.path .. "." .. name .. " has invalid value '" .. value .. "'")
end

-- The values of one option, and whether one of them could not be read.
local function read_values(out, o, reader, values)
	local read, bad = {}, false
	for _, v in ipairs(values) do
		local value, wrong = readers[reader](v)
		if options.style == "fw3" and poisoned and numbers[reader] then wrong = true end
		if options.style == "fw3" and reader == "protocol" and value and not ({ tcp = 1, udp = 1, tcpudp = 1, icmp = 1, ["ipv6-icmp"] = 1, any = 1, esp = 1, ah = 1, sctp = 1, udplite = 1, igmp = 1, gre = 1 })[value.text] and not value.text:match("^%d+$") then
			wrong = true
		end
		if wrong then
			say_invalid(out, o.name, v)
			bad, poisoned = true, true
		else
			read[#read + 1] = value
		end
	end
	return read, bad
end

-- A zone's devices: those that it names, and those of its networks as far as netifd knows them. A device that comes both
-- ways is one (firewall3 zones.c resolve_networks; firewall4 fw4.uc, set). `device_of` tells a network's device, or nil.
function options.zone_devices(z, device_of)
	local found, seen = {}, {}
	local function add(device)
		if device and not seen[device] then
			seen[device] = true
			found[#found + 1] = device
		end
	end
	for _, name in ipairs(z.network or {}) do add(device_of(name)) end
	for _, device in ipairs(z.device or {}) do add(device) end
	return found
end

-- Read one section; nil when the real one would skip it. `index` counts the sections of its type.
function options.read(s, index)
	local out = { title = title(s, index), index = index, path = s.anonymous and string.format("@%s[%d]", s.type, index) or s.name }
	local bad = false
	for _, o in ipairs(s.options) do
		local reader = reader_of(s, o.name)
		local many = reader and reader:sub(1, 1) == "*"
		reader = many and reader:sub(2) or reader
		if not reader then
			say_unknown(out, o.name)
		elseif reader == "old" then
			options.warn(out.title .. " option '" .. o.name .. "' is not supported by fw4")
		elseif reader == "unsupported" then
			options.missing(s.type .. " option " .. o.name)
		else
			local values = many and uci.list(s, o.name) or { type(o.value) == "table" and o.value[#o.value] or o.value }
			local read, wrong = read_values(out, o, reader, values)
			bad = bad or wrong
			if many then out[o.name] = read else out[o.name] = read[1] end
		end
	end
	if out.enabled == false then
		if options.style == "fw4" then options.warn(out.title .. " is disabled, ignoring section") end
		return nil
	end
	if bad then
		options.warn(options.style == "fw4" and out.title .. " skipped due to invalid options" or "Section " .. out.path .. " skipped due to invalid options")
		return nil
	end
	return out
end

return options
