-- Reads /etc/config/firewall and netifd's state into zones and lists of rules, section by section in fw4's order.
-- Stands for the collecting half of openwrt/firewall4 root/usr/share/ucode/fw4.uc.
local uci = require("lab.uci")
local bus = require("lab.bus")
local address = require("lab.address")
local options = require("lab.fw.options")
local rules = require("lab.fw4.rules")

local state = {}

local hooks = {
	input = true, forward = true, output = true, dstnat = true, srcnat = true, raw_output = true, raw_prerouting = true,
	mangle_prerouting = true, mangle_postrouting = true, mangle_input = true, mangle_output = true, mangle_forward = true, prerouting = true,
}

local function networks()
	local answer = bus.call("network.interface", "dump") or {}
	local found = {}
	for _, i in ipairs(answer.interface or {}) do
		local n = { device = i.l3_device, subnets = {} }
		for _, key in ipairs({ "ipv4-address", "ipv6-address" }) do
			for _, a in ipairs(i[key] or {}) do n.subnets[#n.subnets + 1] = address.network(a.address, a.mask) end
		end
		found[i.interface] = n
	end
	return found
end

local function zone(fw, s, index, nets)
	local z = options.read(s, index)
	if not z then return end
	if not z.name then return options.warn(z.title .. " has no name, ignoring section") end
	z.devices, z.subnets = options.zone_devices(z, function(name) return nets[name] and nets[name].device end), {}
	for _, name in ipairs(z.network or {}) do
		local net = nets[name]
		for _, subnet in ipairs(net and net.subnets or {}) do z.subnets[#z.subnets + 1] = subnet end
	end
	for _, a in ipairs(z.subnet or {}) do z.subnets[#z.subnets + 1] = a.text end
	if z.subnet and #z.subnet > 0 then options.missing("zone option subnet as a match") end
	for _, p in ipairs({ "input", "output", "forward" }) do z[p] = z[p] or fw.defaults[p] end
	fw.zones[#fw.zones + 1] = z
	fw.by_name[z.name] = z
end

local function include(fw, s, index)
	local i = options.read(s, index)
	if not i then return end
	if not i.path then return options.warn(i.title .. " must specify a path") end
	local kind = i.type or "script"
	if kind == "script" then
		local compatible = i.fw4_compatible
		if compatible == nil then compatible = i.path ~= "/etc/firewall.user" end
		if not compatible then
			options.warn(i.title .. " option 'fw4_compatible' is not set, ignoring section")
			return options.warn(i.title .. " is not marked as compatible with fw4, ignoring section")
		end
		fw.scripts[#fw.scripts + 1] = i.path
		return
	end
	if kind ~= "nftables" then return options.warn(i.title .. " option 'type' specifies invalid value '" .. kind .. "'") end
	local f = io.open(i.path)
	if not f then return options.warn(i.title .. " specifies unreachable path '" .. i.path .. "', ignoring section") end
	f:close()
	local position = (i.position or "table-append"):gsub("%-postpend$", "-append")
	local where, when = position:match("^(%a+)%-(%a+)$")
	if when == "prepend" then when = "pre" elseif when == "pre" or when == "append" then when = when == "pre" and "pre" or "post" else when = "post" end
	if where ~= "ruleset" and where ~= "table" and where ~= "chain" then
		return options.warn(i.title .. " option 'position' specifies invalid value '" .. i.position .. "'")
	end
	if where == "chain" then
		if not i.chain then return options.warn(i.title .. " must specify a chain for position '" .. position .. "'") end
		if i.chain == "raw_prerouting" and when == "pre" then return end -- fw4 has no hook there
		local base = i.chain:match("^(%a+)_[%w_]+$")
		if not hooks[i.chain] and not ({ input = 1, output = 1, forward = 1, dstnat = 1, srcnat = 1 })[base] then
			return options.warn(i.title .. " option 'chain' specifies invalid value '" .. i.chain .. "'")
		end
	end
	state.place(fw, where, when, i.chain, i.path)
end

function state.place(fw, where, when, chain, path)
	local key = where .. "-" .. when .. (where == "chain" and ":" .. chain or "")
	fw.includes[key] = fw.includes[key] or {}
	table.insert(fw.includes[key], path)
end

local function automatic(fw)
	local p = io.popen("find /usr/share/nftables.d -name '*.nft' 2>/dev/null | sort")
	for path in p:lines() do
		local where, when, rest = path:match("^/usr/share/nftables%.d/(%a+)%-(%a+)/(.*)$")
		local chain = rest and rest:match("^([^/]+)/[^/]+$")
		if where and (when == "pre" or when == "post") and (where ~= "chain" or chain) then
			io.stderr:write("[!] Automatically including '", path, "'\n")
			state.place(fw, where, when, chain, path)
		end
	end
	p:close()
end

-- The whole configuration; nil and a message when uci refuses the file.
function state.load()
	local ok, package = pcall(uci.load, "firewall")
	if not ok then return nil, tostring(package) end
	if not package then return nil, "Unable to load firewall configuration" end
	local fw = { zones = {}, by_name = {}, scripts = {}, includes = {}, sets = {}, set_families = {}, chains = {}, defaults = {} }
	local counts = {}
	local by_type = {}
	for _, s in ipairs(package.sections) do
		counts[s.type] = (counts[s.type] or -1) + 1
		by_type[s.type] = by_type[s.type] or {}
		table.insert(by_type[s.type], { s, counts[s.type] })
	end
	local known = { "defaults", "ipset", "zone", "rule", "forwarding", "redirect", "nat", "include" }
	for kind in pairs(by_type) do
		local found = false
		for _, k in ipairs(known) do found = found or k == kind end
		if not found then options.missing("section type " .. kind) end
	end
	local function each(kind, fn)
		for _, pair in ipairs(by_type[kind] or {}) do fn(pair[1], pair[2]) end
	end
	each("defaults", function(s, i) fw.defaults = options.read(s, i) or {} end)
	local d = fw.defaults
	d.input, d.output, d.forward = d.input or "drop", d.output or "drop", d.forward or "drop"
	if d.synflood_protect == nil then d.synflood_protect = d.syn_flood end
	each("ipset", function(s, i) rules.ipset(fw, options.read(s, i)) end)
	local nets = networks()
	each("zone", function(s, i) zone(fw, s, i, nets) end)
	each("rule", function(s, i) rules.rule(fw, options.read(s, i)) end)
	each("forwarding", function(s, i) rules.forwarding(fw, options.read(s, i)) end)
	each("redirect", function(s, i) rules.redirect(fw, options.read(s, i)) end)
	each("nat", function(s, i) rules.nat(fw, options.read(s, i)) end)
	each("include", function(s, i) include(fw, s, i) end)
	if d.auto_includes ~= false then automatic(fw) end
	return fw
end

return state
