-- JSON, small: encode and decode. Arrays are tables made with json.array or with only positions 1..n.
local json = { keep_order = false } -- keep_order: decode notes the order of keys for encode, as __order

local array_mark = {}
json.null = setmetatable({}, { __tostring = function() return "null" end })

-- Mark a table as an array, so that an empty one is written as [ ].
function json.array(t) return setmetatable(t or {}, array_mark) end

local escapes = { ['"'] = '\\"', ["\\"] = "\\\\", ["\b"] = "\\b", ["\f"] = "\\f", ["\n"] = "\\n", ["\r"] = "\\r", ["\t"] = "\\t" }
local function quoted(s)
	return '"' .. s:gsub('[%c"\\]', function(c) return escapes[c] or string.format("\\u%04x", c:byte()) end) .. '"'
end

local function sorted_keys(t)
	local keys = {}
	for k in pairs(t) do keys[#keys + 1] = k end
	table.sort(keys, function(a, b) return tostring(a) < tostring(b) end)
	return keys
end

local function encode(v, indent, depth)
	local kind = type(v)
	if v == json.null or v == nil then return "null" end
	if kind == "boolean" then return tostring(v) end
	if kind == "number" then
		return v == math.floor(v) and string.format("%d", v) or string.format("%.6f", v)
	end
	if kind ~= "table" then return quoted(tostring(v)) end
	local is_array = getmetatable(v) == array_mark or #v > 0
	local parts = {}
	local keys = not is_array and (v.__order or sorted_keys(v)) or nil
	if is_array then
		for i = 1, #v do parts[i] = encode(v[i], indent, depth + 1) end
	else
		for _, k in ipairs(keys) do
			if k ~= "__order" and v[k] ~= nil then
				parts[#parts + 1] = quoted(tostring(k)) .. (indent and ": " or ":") .. encode(v[k], indent, depth + 1)
			end
		end
	end
	local open, close = is_array and "[" or "{", is_array and "]" or "}"
	if not indent then return open .. table.concat(parts, ",") .. close end
	local pad = string.rep("\t", depth)
	return open .. "\n" .. pad .. "\t" .. table.concat(parts, ",\n" .. pad .. "\t") .. "\n" .. pad .. close
end

-- Text of a value; with `indent` over several lines with tabs, as ubus prints it. `__order` fixes the order of keys.
function json.encode(v, indent) return encode(v, indent, 0) end

local decode_value

local function skip(s, i) return s:find("[^ \t\r\n]", i) or #s + 1 end

local function utf8_of(code)
	return utf8.char(code)
end

local function decode_string(s, i)
	local out = {}
	local at = i + 1
	while true do
		local j = s:find('["\\]', at)
		if not j then error("unfinished string", 0) end
		out[#out + 1] = s:sub(at, j - 1)
		if s:sub(j, j) == '"' then return table.concat(out), j + 1 end
		local c = s:sub(j + 1, j + 1)
		local plain = { b = "\b", f = "\f", n = "\n", r = "\r", t = "\t", ['"'] = '"', ["\\"] = "\\", ["/"] = "/" }
		if c == "u" then
			out[#out + 1] = utf8_of(tonumber(s:sub(j + 2, j + 5), 16))
			at = j + 6
		elseif plain[c] then
			out[#out + 1] = plain[c]
			at = j + 2
		else
			error("bad escape", 0)
		end
	end
end

local function decode_list(s, i, close, item)
	local at = skip(s, i + 1)
	if s:sub(at, at) == close then return at + 1 end
	while true do
		at = skip(s, item(at))
		local c = s:sub(at, at)
		if c == close then return at + 1 end
		if c ~= "," then error("expected , or " .. close, 0) end
		at = skip(s, at + 1)
	end
end

decode_value = function(s, i)
	i = skip(s, i)
	local c = s:sub(i, i)
	if c == "{" then
		local t, order = {}, {}
		local at = decode_list(s, i, "}", function(at)
			if s:sub(at, at) ~= '"' then error("expected a name", 0) end
			local key, after = decode_string(s, at)
			after = skip(s, after)
			if s:sub(after, after) ~= ":" then error("expected :", 0) end
			t[key], after = decode_value(s, after + 1)
			order[#order + 1] = key
			return after
		end)
		if json.keep_order then t.__order = order end
		return t, at
	elseif c == "[" then
		local t = json.array()
		local at = decode_list(s, i, "]", function(at)
			local v, after = decode_value(s, at)
			t[#t + 1] = v
			return after
		end)
		return t, at
	elseif c == '"' then
		return decode_string(s, i)
	end
	for word, v in pairs({ ["true"] = true, ["false"] = false, null = json.null }) do
		if s:sub(i, i + #word - 1) == word then return v, i + #word end
	end
	local number = s:match("^-?%d+%.?%d*[eE]?[+-]?%d*", i)
	if not number then error("unexpected text", 0) end
	return tonumber(number), i + #number
end

-- The value of a JSON text; nil and a message when it is none.
function json.decode(s)
	local ok, v, at = pcall(decode_value, s, 1)
	if not ok then return nil, v end
	if skip(s, at) <= #s then return nil, "text after the value" end
	return v
end

return json
