# The functions of Nixpkgs' lib that nbc uses, and as much of the module system as its module needs: what is defined and
# not declared is taken as it comes, but for options beside declared ones.
let
  inherit (builtins) attrNames attrValues concatLists concatStringsSep filter foldl' isAttrs isFunction isList
    isString length listToAttrs mapAttrs replaceStrings split stringLength substring;

  isOption = value: value._type or "" == "option";

  # A condition on attributes is one on each of them, so that their names are known before it is.
  push = value:
    if value._type or "" != "if" then value
    else if isAttrs value.content && !(value.content ? outPath) && !(value.content ? _type)
    then mapAttrs (_: content: value // { inherit content; }) value.content
    else if value.content._type or "" == "if"
    then push (value.content // { condition = value.condition && value.content.condition; })
    else value;

  # The values of definitions: without those whose condition does not hold, nor those that are weaker than others.
  values = definitions:
    let
      held = filter (v: v._type or "" != "if" || v.condition) definitions;
      plain = map (v: if v._type or "" == "if" then v.content else v) held;
      strong = filter (v: v._type or "" != "default") plain;
    in
    if strong != [ ] then strong else map (v: v.content) plain;

  # What is defined nowhere is null.
  merge = path: definitions:
    let
      pushed = map push definitions;
      names = foldl' (a: b: a // b) { } pushed;
      all = values pushed;
    in
    if builtins.all (v: isAttrs v && !(v ? outPath) && !(v ? _type)) pushed
    then mapAttrs (name: _: merge "${path}.${name}" (map (v: v.${name}) (filter (v: v ? ${name}) pushed))) names
    else if all == [ ] then null
    else if isList (builtins.head all) then concatLists all
    else if length all == 1 then builtins.head all
    else throw "${path} is defined twice";

  # The values of declared options, each checked against its type.
  declared = path: options: config:
    let
      known = mapAttrs
        (name: option:
          let value = config.${name} or option.default or (throw "${path}.${name} has no value"); in
          if !isOption option then declared "${path}.${name}" option config.${name} or { }
          else if option.type value then value
          else throw "${path}.${name} is of another type: ${builtins.toJSON value}")
        options;
      unknown = attrNames (removeAttrs config (attrNames options));
    in
    if builtins.any isOption (attrValues options) && unknown != [ ]
    then throw "${path} has no option ${toString unknown}"
    else config // known;

  filterAttrs = f: attrs: listToAttrs (map (name: { inherit name; value = attrs.${name}; })
    (filter (name: f name attrs.${name}) (attrNames attrs)));

  recursiveUpdate = a: b: a // mapAttrs
    (name: value: if isAttrs value && isAttrs (a.${name} or null) then recursiveUpdate a.${name} value else value)
    b;

  lib = {
    inherit filterAttrs recursiveUpdate concatStringsSep;
    inherit (builtins) concatMap;

    hasPrefix = prefix: text: substring 0 (stringLength prefix) text == prefix;
    hasSuffix = suffix: text:
      let n = stringLength text - stringLength suffix; in n >= 0 && substring n (-1) text == suffix;
    removePrefix = prefix: text:
      if lib.hasPrefix prefix text then substring (stringLength prefix) (-1) text else text;
    splitString = separator: text: filter isString (split (replaceStrings [ "." ] [ "\\." ] separator) text);
    concatMapStrings = f: items: concatStringsSep "" (map f items);
    genAttrs = names: f: listToAttrs (map (name: { inherit name; value = f name; }) names);
    imap0 = f: items: builtins.genList (n: f n (builtins.elemAt items n)) (length items);
    mapAttrsToList = f: attrs: attrValues (mapAttrs f attrs);
    optionals = condition: items: if condition then items else [ ];
    optionalAttrs = condition: attrs: if condition then attrs else { };
    warnIf = condition: text: value: if condition then builtins.trace "warning: ${text}" value else value;

    licenses.mit = "MIT";
    platforms.unix = [ "x86_64-linux" ];

    mkOption = option: option // { _type = "option"; };
    mkEnableOption = _: { _type = "option"; type = lib.types.bool; default = false; };
    mkIf = condition: content: { _type = "if"; inherit condition content; };
    mkDefault = content: { _type = "default"; inherit content; };
    types = {
      bool = builtins.isBool;
      str = isString;
      lines = isString;
      package = value: value ? outPath || isString value;
      nullOr = type: value: value == null || type value;
      listOf = type: value: isList value && builtins.all type value;
      attrsOf = type: value: isAttrs value && builtins.all type (attrValues value);
    };

    evalModules = { modules, specialArgs ? { } }:
      let
        open = module:
          if isAttrs module then module
          else if isFunction module then module (specialArgs // { inherit config lib; })
          else open (import module);
        load = module:
          let m = open module; in
          concatLists (map load m.imports or [ ])
          ++ [ (if m ? config || m ? options then m else { config = removeAttrs m [ "imports" ]; }) ];
        all = concatLists (map load modules);
        options = foldl' recursiveUpdate { } (map (m: m.options or { }) all);
        config = declared "config" options (merge "config" (map (m: m.config or { }) all));
      in
      { inherit config options; };
  };
in
lib
