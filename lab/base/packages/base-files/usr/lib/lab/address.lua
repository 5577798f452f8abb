-- IP addresses as text: checks, prefix lengths, networks. Strict: no blanks, no brackets, no scope.
local address = {}

-- The four bytes of an IPv4 address, or nil.
function address.v4(text)
	local a, b, c, d = text:match("^(%d%d?%d?)%.(%d%d?%d?)%.(%d%d?%d?)%.(%d%d?%d?)$")
	if not a then return nil end
	local bytes = { tonumber(a), tonumber(b), tonumber(c), tonumber(d) }
	for _, x in ipairs(bytes) do
		if x > 255 then return nil end
	end
	return bytes
end

-- The sixteen bytes of an IPv6 address, or nil.
function address.v6(text)
	if not text:match("^[%x:%.]+$") or not text:find(":") or text:find(":::") then return nil end
	local tail = text:match("([%d%.]+)$")
	if tail and tail:find("%.") then
		local four = address.v4(tail)
		if not four then return nil end
		text = text:sub(1, #text - #tail) .. string.format("%x:%x", four[1] * 256 + four[2], four[3] * 256 + four[4])
	end
	local left, right = text:match("^(.-)::(.*)$")
	if right and right:find("::", 1, true) then return nil end
	local function groups(part)
		local found = {}
		if part == "" then return found end
		for g in (part .. ":"):gmatch("([^:]*):") do
			if not g:match("^%x%x?%x?%x?$") then return nil end
			found[#found + 1] = tonumber(g, 16)
		end
		return found
	end
	local words
	if left then
		local a, b = groups(left), groups(right)
		if not a or not b or #a + #b > 7 then return nil end
		words = a
		for _ = 1, 8 - #a - #b do words[#words + 1] = 0 end
		for _, g in ipairs(b) do words[#words + 1] = g end
	else
		words = groups(text)
		if not words or #words ~= 8 then return nil end
	end
	local bytes = {}
	for _, w in ipairs(words) do
		bytes[#bytes + 1] = w >> 8
		bytes[#bytes + 1] = w & 255
	end
	return bytes
end

-- 4, 6 or nil.
function address.family(text) return address.v4(text) and 4 or address.v6(text) and 6 or nil end

-- The prefix length of a netmask such as 255.255.255.0, or of a plain number; nil when it is none.
function address.prefix(mask, longest)
	if mask:match("^%d+$") then
		local n = tonumber(mask)
		return n <= longest and n or nil
	end
	local bytes = address.v4(mask) or address.v6(mask)
	if not bytes then return nil end
	local bits = 0
	local ended = false
	for _, b in ipairs(bytes) do
		for i = 7, 0, -1 do
			local one = (b >> i) & 1 == 1
			if one and ended then return nil end
			if one then bits = bits + 1 else ended = true end
		end
	end
	return bits
end

-- "a/len" of an address with optional /len or /mask: family, address text, prefix length; nil when it is none.
function address.cidr(text, default)
	local host, mask = text:match("^([^/]+)/(.+)$")
	host = host or text
	local family = address.family(host)
	if not family then return nil end
	local longest = family == 4 and 32 or 128
	local bits = default or longest
	if mask then
		bits = address.prefix(mask, longest)
		if not bits then return nil end
	end
	return family, host, bits
end

-- The network an address lies in, as text "net/len".
function address.network(host, bits)
	local bytes = address.v4(host) or address.v6(host)
	local out = {}
	for i, b in ipairs(bytes) do
		local keep = math.max(0, math.min(8, bits - (i - 1) * 8))
		out[i] = b & (0xff << (8 - keep)) & 0xff
	end
	if #out == 4 then return table.concat(out, ".") .. "/" .. bits end
	local words = {}
	for i = 1, 16, 2 do words[#words + 1] = string.format("%x", out[i] * 256 + out[i + 1]) end
	local text = ":" .. table.concat(words, ":") .. ":"
	local best = ""
	for run in text:gmatch(":[0:]+:") do
		run = run:match(":0:[0:]*") and run or ""
		if #run > #best then best = run end
	end
	if #best > 3 then
		local at = text:find(best, 1, true)
		text = text:sub(1, at - 1) .. "::" .. text:sub(at + #best)
		text = text:gsub("^:([^:])", "%1"):gsub("([^:]):$", "%1")
	else
		text = text:sub(2, -2)
	end
	return text .. "/" .. bits
end

return address
