-- UCI files: a strict parser, changes in /tmp/.uci, canonical text. Behaviour of openwrt/uci (file.c, delta.c, list.c,
-- util.c); the code is our own. A package is { name=, sections = { {name=, type=, anonymous=, options = {...}} } };
-- options is a list of { name=, value= } where value is a string or an array of strings.
local uci = { confdir = "/etc/config", savedir = "/tmp/.uci" }

local Package = {}
Package.__index = Package

local function hash(text, seed)
	local h = seed
	for i = 1, #text do h = ((h << 5) + h + text:byte(i)) & 0xffffffff end
	return h
end

-- The name of an anonymous section: cfg, its position, and a digest of its type.
local function anonymous_name(package, kind)
	package.counter = package.counter + 1
	return string.format("cfg%02x%04x", package.counter, hash(kind, 5381) & 0xffff)
end

function Package:section(name)
	for _, s in ipairs(self.sections) do
		if s.name == name then return s end
	end
end

function Package:add(kind, name)
	local s = { type = kind, name = name or anonymous_name(self, kind), anonymous = not name, options = {} }
	if name then self.counter = self.counter + 1 end
	self.sections[#self.sections + 1] = s
	return s
end

-- The sections of a type, in order.
function Package:each(kind)
	local found = {}
	for _, s in ipairs(self.sections) do
		if not kind or s.type == kind then found[#found + 1] = s end
	end
	return found
end

function uci.option(section, name)
	for _, o in ipairs(section.options) do
		if o.name == name then return o end
	end
end

-- The value of an option: string, array or nil.
function uci.value(section, name)
	local o = uci.option(section, name)
	return o and o.value
end

function uci.set(section, name, value)
	local o = uci.option(section, name)
	if value == "" or (type(value) == "table" and #value == 0) then
		for i, x in ipairs(section.options) do
			if x == o then table.remove(section.options, i) end
		end
	elseif o then
		o.value = value
	else
		section.options[#section.options + 1] = { name = name, value = value }
	end
end

function uci.valid_name(text) return text ~= "" and not text:find("[^%w_]") end
function uci.valid_type(text) return text ~= "" and not text:find("[^\33-\126]") end
function uci.valid_package(text) return text ~= "" and not text:find("[^%w_%-]") end

local ParseError = {}
ParseError.__index = ParseError
ParseError.__tostring = function(e)
	return string.format("uci: Parse error (%s) at line %d, byte %d", e.reason, e.line, e.byte)
end

-- Reads words out of the text: quoting, comments, joined lines. Positions are kept for messages.
local Reader = {}
Reader.__index = Reader

function Reader:fail(reason, at)
	at = at or self.at
	local line, start = 1, 1
	for i in self.text:sub(1, at - 1):gmatch("()\n") do
		line, start = line + 1, i + 1
	end
	error(setmetatable({ reason = reason, line = line, byte = at - start }, ParseError), 0)
end

-- The words of the next command (up to newline or ;), nil at the end.
function Reader:command()
	local words, text = {}, self.text
	local part = nil
	local function finish()
		if part then words[#words + 1] = { text = table.concat(part), at = self.word_at } end
		part = nil
	end
	local function grow(piece)
		if not part then part, self.word_at = {}, self.at end
		part[#part + 1] = piece
	end
	while self.at <= #text do
		local c = text:sub(self.at, self.at)
		if c == "\n" or c == ";" then
			finish()
			self.at = self.at + 1
			if #words > 0 then return words end
		elseif c == "#" then
			finish()
			self.at = text:find("\n", self.at, true) or #text + 1
		elseif c == " " or c == "\t" or c == "\r" then
			finish()
			self.at = self.at + 1
		elseif c == "'" then
			local stop = text:find("'", self.at + 1, true)
			if not stop then self:fail("unterminated '") end
			grow(text:sub(self.at + 1, stop - 1))
			self.at = stop + 1
		elseif c == '"' then
			grow("")
			local begin = self.at
			self.at = self.at + 1
			while true do
				local stop = text:find('["\\]', self.at)
				if not stop then self:fail('unterminated "', begin) end
				grow(text:sub(self.at, stop - 1))
				if text:sub(stop, stop) == '"' then
					self.at = stop + 1
					break
				end
				if text:sub(stop + 1, stop + 1) ~= "\n" then grow(text:sub(stop + 1, stop + 1)) end
				self.at = stop + 2
			end
		elseif c == "\\" then
			local n = text:sub(self.at + 1, self.at + 1)
			if n ~= "\n" then grow(n) end
			self.at = self.at + 2
		elseif c == "\0" then
			self:fail("invalid character")
		else
			local stop = (text:find('[%s;#\'"\\]', self.at) or #text + 1) - 1
			grow(text:sub(self.at, stop))
			self.at = stop + 1
		end
	end
	finish()
	return #words > 0 and words or nil
end

local keywords = { package = "package", p = "package", config = "config", c = "config", option = "option", o = "option", list = "list", l = "list" }

-- Parse text into packages; a file without `package` line is one package of the given name. Raises a ParseError.
function uci.parse(text, name)
	local reader = setmetatable({ text = text, at = 1 }, Reader)
	local function new(n) return setmetatable({ name = n, sections = {}, counter = 0 }, Package) end
	local package = new(name)
	local found, section = { package }, nil
	if text:find("\0", 1, true) then reader:fail("invalid character", text:find("\0", 1, true)) end
	while true do
		local words = reader:command()
		if not words then break end
		local verb = keywords[words[1].text]
		local function arg(n, missing)
			if not words[n] then reader:fail(missing or "insufficient arguments", words[#words].at) end
			return words[n].text
		end
		local function at_most(n)
			if words[n + 1] then reader:fail("too many arguments", words[n + 1].at) end
		end
		if verb == "package" then
			at_most(2)
			if not uci.valid_package(arg(2)) then reader:fail("invalid character in name field", words[2].at) end
			package = new(arg(2))
			found[#found + 1] = package
			section = nil
		elseif verb == "config" then
			at_most(3)
			local kind, id = arg(2), words[3] and words[3].text
			if not uci.valid_type(kind) then reader:fail("invalid character in type field", words[2].at) end
			if id == "" then id = nil end
			if id and not uci.valid_name(id) then reader:fail("invalid character in name field", words[3].at) end
			section = id and package:section(id)
			if section and section.type ~= kind then reader:fail("section of different type overwrites prior section with same name", words[3].at) end
			section = section or package:add(kind, id)
		elseif verb == "option" or verb == "list" then
			at_most(3)
			if not section then reader:fail("option/list command found before the first section", words[1].at) end
			local key, value = arg(2), arg(3)
			if not uci.valid_name(key) then reader:fail("invalid character in name field", words[2].at) end
			local old = uci.value(section, key)
			if verb == "option" then
				uci.set(section, key, value)
			elseif value ~= "" then
				if type(old) == "string" then old = { old } end
				local values = old or {}
				values[#values + 1] = value
				uci.set(section, key, values)
			end
		else
			reader:fail("invalid command", words[1].at)
		end
	end
	if #found > 1 and #found[1].sections == 0 then table.remove(found, 1) end
	return found
end

local function read(path)
	local f, why = io.open(path, "rb")
	if not f then return nil, why end
	local text = f:read("a")
	f:close()
	return text
end

-- Load a package with the pending changes; nil and a message when there is none. Raises a ParseError.
function uci.load(name, pristine, extra_dirs)
	local text = read(uci.confdir .. "/" .. name)
	if not text then return nil, "Entry not found" end
	local package = uci.parse(text, name)[1]
	package.name = name
	if not pristine then
		for _, dir in ipairs(extra_dirs or {}) do uci.replay(package, read(dir .. "/" .. name) or "") end
		uci.replay(package, read(uci.savedir .. "/" .. name) or "")
	end
	return package
end

local function unescape(value)
	if value:sub(1, 1) ~= "'" then return value end
	return (value:sub(2, -2):gsub("'\\''", "'"))
end

uci.reader = function(text) return setmetatable({ text = text, at = 1 }, Reader) end

-- Split a delta into its changes, one a line; a quoted value may span several lines.
local function delta_lines(text)
	local lines, at = {}, 1
	while at <= #text do
		local stop = text:find("\n", at, true) or #text + 1
		local quote = text:sub(at, stop - 1):match("^[^=']*=()'")
		if quote then
			local from = at + quote -- behind the opening quote
			while true do
				local close = text:find("'", from, true)
				if not close then return lines end
				if text:sub(close, close + 3) ~= "'\\''" then
					stop = close + 1
					break
				end
				from = close + 4
			end
		end
		if stop > at then lines[#lines + 1] = text:sub(at, stop - 1) end
		at = stop + 1
	end
	return lines
end
uci.delta_lines = delta_lines

-- Apply a delta (one change a line, as uci writes them to its save directory) to a package.
function uci.replay(package, text)
	for _, line in ipairs(delta_lines(text)) do
		local mark, path, value = line:match("^([-@^|~+]?)([^=]+)=?(.*)$")
		local section, option = path:match("^[^.]+%.([^.]+)%.?([^.]*)$")
		value = unescape(value)
		local s = section and package:section(section)
		if mark == "+" then
			package:add(value, section).anonymous = true
		elseif section and option == "" and mark == "" then
			if s then s.type = value else package:add(value, section) end
		elseif s and mark == "" then
			uci.set(s, option, value)
		elseif s and mark == "-" and option == "" then
			for i, x in ipairs(package.sections) do
				if x == s then table.remove(package.sections, i) end
			end
		elseif s and mark == "-" then
			uci.set(s, option, "")
		elseif s and (mark == "|" or mark == "~") then
			local values = uci.value(s, option) or {}
			if type(values) == "string" then values = { values } end
			if mark == "~" then
				for i = #values, 1, -1 do
					if values[i] == value then table.remove(values, i) end
				end
			else
				values[#values + 1] = value
			end
			uci.set(s, option, values)
		elseif s and mark == "@" and option == "" then
			s.name, s.anonymous = value, false
		elseif s and mark == "@" then
			local o = uci.option(s, option)
			if o then o.name = value end
		elseif s and mark == "^" then
			for i, x in ipairs(package.sections) do
				if x == s then table.remove(package.sections, i) end
			end
			table.insert(package.sections, math.min(tonumber(value) + 1, #package.sections + 1), s)
		end
	end
end

function uci.quote(value) return "'" .. value:gsub("'", "'\\''") .. "'" end

-- The canonical text of a package: what `uci export` prints and commit writes.
function uci.text(package, header, name_anonymous)
	local out = {}
	if header then out[1] = "package " .. package.name .. "\n" end
	for _, s in ipairs(package.sections) do
		local head = "\nconfig " .. (s.type:find("[^%w_]") and uci.quote(s.type) or s.type)
		if not s.anonymous or name_anonymous then head = head .. " " .. uci.quote(s.name) end
		out[#out + 1] = head .. "\n"
		for _, o in ipairs(s.options) do
			local values, verb = o.value, "list"
			if type(values) == "string" then values, verb = { values }, "option" end
			for _, v in ipairs(values) do out[#out + 1] = "\t" .. verb .. " " .. o.name .. " " .. uci.quote(v) .. "\n" end
		end
	end
	return table.concat(out) .. (header and "\n" or "")
end

-- The booleans of netifd and fw4: true, false, or nil for anything else.
function uci.bool(value)
	if value == "1" or value == "on" or value == "true" or value == "yes" or value == "enabled" then return true end
	if value == "0" or value == "off" or value == "false" or value == "no" or value == "disabled" then return false end
end

-- The values of an option as an array; a plain option is split at blanks, as netifd and fw4 do.
function uci.list(section, name)
	local value = uci.value(section, name)
	if type(value) == "table" then return value end
	local items = {}
	for word in (value or ""):gmatch("%S+") do items[#items + 1] = word end
	return items
end

return uci
