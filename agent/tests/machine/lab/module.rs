//! A MIB module as compiled by pysmi, and a check of an agent's values against it.

use std::{collections::BTreeMap, fs, path::Path, process::Command};

use serde_json::Value as Json;

/// A line of a walk: name, type as net-snmp prints it, and value.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Binding {
    pub(crate) name: Vec<u32>,
    pub(crate) kind: String,
    pub(crate) value: Value,
}

#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Value {
    Number(i64),
    Counter(u64),
    Octets(Vec<u8>),
    Other(String),
}

/// Parses the output of snmpbulkwalk with these options.
pub(crate) const WALK: [&str; 6] = ["-m", "", "-On", "-Oe", "-Ot", "-Ox"];

pub(crate) fn bindings(walk: &str) -> Vec<Binding> {
    // Long octet strings continue on the next lines.
    let mut lines: Vec<String> = Vec::new();
    for line in walk.lines() {
        match lines.last_mut() {
            Some(last) if !line.starts_with(".1.") => last.push_str(&format!(" {line}")),
            _ => lines.push(line.to_owned()),
        }
    }
    lines
        .iter()
        .map(|line| binding(line).unwrap_or_else(|| panic!("not understood: {line}")))
        .collect()
}

fn binding(line: &str) -> Option<Binding> {
    let (name, rest) = line.split_once(" = ")?;
    let name = name
        .trim_start_matches('.')
        .split('.')
        .map(|part| part.parse().ok())
        .collect::<Option<_>>()?;
    let (kind, value) = match rest {
        "\"\"" => ("Hex-STRING", ""),
        // With -Ot, time ticks are a bare number.
        ticks if ticks.bytes().all(|digit| digit.is_ascii_digit()) => ("Timeticks", ticks),
        _ => rest.split_once(": ")?,
    };
    let value = match kind {
        "INTEGER" | "Timeticks" => Value::Number(value.parse().ok()?),
        "Counter64" => Value::Counter(value.parse().ok()?),
        "Hex-STRING" => {
            let octets = value.split_whitespace().map(|octet| u8::from_str_radix(octet, 16));
            Value::Octets(octets.collect::<Result<_, _>>().ok()?)
        }
        _ => Value::Other(value.to_owned()),
    };
    Some(Binding { name, kind: kind.to_owned(), value })
}

/// A compiled module.
pub(crate) struct Module {
    objects: BTreeMap<Vec<u32>, Object>,
    all: BTreeMap<String, Json>,
}

#[derive(Debug)]
struct Object {
    name: String,
    is_readable: bool,
    syntax: Syntax,
    /// The columns of the index; empty for a scalar.
    indexes: Option<Vec<String>>,
}

/// A base type of SMIv2 with its constraints.
#[derive(Clone, Debug, Default)]
struct Syntax {
    base: String,
    is_text: bool,
    ranges: Vec<(i64, i64)>,
    sizes: Vec<(i64, i64)>,
    enumeration: Vec<i64>,
}

impl Module {
    /// Compiles VM-MIB of this text, together with the extracts of what it imports.
    pub(crate) fn compile(text: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("VM-MIB"), text).unwrap();
        let imports = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/mib_text/imports");
        let made = dir.path().join("json");
        // Imported at the start of mibdump's Python: pysmi 0.3.4 of Debian 13 uses both, and imports neither.
        let customize = "import importlib.machinery, importlib.util\n";
        fs::write(dir.path().join("sitecustomize.py"), customize).unwrap();
        let output = Command::new("mibdump")
            .env("PYTHONPATH", dir.path())
            .arg(format!("--mib-source=file://{}", dir.path().display()))
            .arg(format!("--mib-source=file://{}", imports.display()))
            // No searcher or borrower, so that the compiler does not access the network.
            .args(["--mib-searcher=none", "--mib-stub=none", "--mib-borrower=none"])
            .args(["--destination-format=json", "--no-python-compile"])
            .arg(format!("--destination-directory={}", made.display()))
            .arg("VM-MIB")
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        assert!(output.status.success() && said.contains("VM-MIB"), "{said}");
        let failed = said.lines().find(|line| line.contains("Failed MIBs"));
        assert_eq!(failed.map(str::trim), Some("Failed MIBs:"), "{said}");
        let mut all = BTreeMap::new();
        for file in fs::read_dir(&made).unwrap() {
            let module: serde_json::Map<String, Json> =
                serde_json::from_slice(&fs::read(file.unwrap().path()).unwrap()).unwrap();
            let is_vm_mib = module.contains_key("vmMIB");
            for (name, definition) in module {
                // Other modules may define the same name.
                if is_vm_mib || !all.contains_key(&name) {
                    all.insert(name, definition);
                }
            }
        }
        let mut module = Self { objects: BTreeMap::new(), all };
        module.objects = module.vm_mib_objects();
        module
    }

    /// Number of objects that can be read or notified.
    pub(crate) fn len(&self) -> usize {
        self.objects.len()
    }

    fn vm_mib_objects(&self) -> BTreeMap<Vec<u32>, Object> {
        let rows: BTreeMap<Vec<u32>, Vec<String>> = self
            .all
            .values()
            .filter(|definition| definition["nodetype"] == "row")
            .map(|row| {
                let indexes = row["indices"].as_array().unwrap();
                (parts(&row["oid"]), indexes.iter().map(|index| text(&index["object"])).collect())
            })
            .collect();
        self.all
            .values()
            .filter(|definition| {
                definition["nodetype"] == "column" || definition["nodetype"] == "scalar"
            })
            .map(|definition| (parts(&definition["oid"]), definition))
            .filter(|(oid, _)| oid.starts_with(&[1, 3, 6, 1, 2, 1, 236]))
            .map(|(oid, definition)| {
                let object = Object {
                    name: text(&definition["name"]),
                    is_readable: text(&definition["maxaccess"]).starts_with("read-"),
                    syntax: self.syntax(&definition["syntax"]),
                    indexes: rows.get(&oid[..oid.len() - 1]).cloned(),
                };
                (oid, object)
            })
            .collect()
    }

    /// Resolves a type down to its base type. Constraints nearer to the object take precedence.
    fn syntax(&self, told: &Json) -> Syntax {
        let name = text(&told["type"]);
        let mut syntax = match self.all.get(&name) {
            Some(convention) if convention["class"] == "textualconvention" => {
                self.syntax(&convention["type"])
            }
            _ => Syntax { base: name.clone(), ..Syntax::default() },
        };
        syntax.is_text |= name == "SnmpAdminString";
        let constraints = &told["constraints"];
        let pairs = |kind: &str| -> Option<Vec<(i64, i64)>> {
            let all = constraints[kind].as_array()?.iter();
            Some(
                all.map(|one| (one["min"].as_i64().unwrap(), one["max"].as_i64().unwrap()))
                    .collect(),
            )
        };
        syntax.ranges = pairs("range").unwrap_or(syntax.ranges);
        syntax.sizes = pairs("size").unwrap_or(syntax.sizes);
        if let Some(names) = constraints["enumeration"].as_object() {
            syntax.enumeration = names.values().map(|value| value.as_i64().unwrap()).collect();
        }
        syntax
    }

    /// The differences between a whole walk and the module.
    pub(crate) fn violations(&self, walk: &[Binding]) -> Vec<String> {
        let mut found: Vec<String> = walk
            .windows(2)
            .filter(|pair| pair[0].name >= pair[1].name)
            .map(|pair| format!("{:?} does not come after {:?}", pair[1].name, pair[0].name))
            .collect();
        for binding in walk {
            if let Err(error) = self.check(binding) {
                found.push(format!("{binding:?}: {error}"));
            }
        }
        found
    }

    fn check(&self, binding: &Binding) -> Result<(), String> {
        let (oid, object) = self
            .objects
            .iter()
            .find(|(oid, _)| binding.name.starts_with(oid))
            .ok_or("no object of the module")?;
        if !object.is_readable {
            return Err(format!("{} must not be read", object.name));
        }
        object.syntax.admits(binding).map_err(|error| format!("{}: {error}", object.name))?;
        let index = &binding.name[oid.len()..];
        let Some(indexes) = &object.indexes else {
            return if index == [0] {
                Ok(())
            } else {
                Err("a scalar has the instance 0".to_owned())
            };
        };
        if index.len() != indexes.len() {
            return Err(format!("{} has {} indexes", object.name, indexes.len()));
        }
        for (part, name) in index.iter().zip(indexes) {
            let syntax = self.syntax(&self.all[name]["syntax"]);
            if !syntax.has(i64::from(*part)) {
                return Err(format!("{part} is no {name}"));
            }
        }
        Ok(())
    }
}

impl Syntax {
    fn admits(&self, binding: &Binding) -> Result<(), String> {
        let expected = match &*self.base {
            "INTEGER" | "Integer32" => "INTEGER",
            "TimeTicks" => "Timeticks",
            "Counter64" => "Counter64",
            "OCTET STRING" => "Hex-STRING",
            "OBJECT IDENTIFIER" => "OID",
            other => return Err(format!("a type that this does not know: {other}")),
        };
        if binding.kind != expected {
            return Err(format!("not of type {}", self.base));
        }
        match &binding.value {
            Value::Number(number) if !self.has(*number) => Err("not in its range".to_owned()),
            Value::Octets(octets) => {
                let len = i64::try_from(octets.len()).unwrap();
                if !self.sizes.is_empty()
                    && !self.sizes.iter().any(|(min, max)| (*min..=*max).contains(&len))
                {
                    return Err(format!("{len} octets are none of its sizes"));
                }
                if self.is_text && std::str::from_utf8(octets).is_err() {
                    return Err("not UTF-8".to_owned());
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn has(&self, number: i64) -> bool {
        let in_range = |(min, max): &(i64, i64)| (*min..=*max).contains(&number);
        (self.ranges.is_empty() || self.ranges.iter().any(in_range))
            && (self.enumeration.is_empty() || self.enumeration.contains(&number))
    }
}

fn text(json: &Json) -> String {
    json.as_str().unwrap_or_else(|| panic!("no text: {json}")).to_owned()
}

fn parts(oid: &Json) -> Vec<u32> {
    text(oid).split('.').map(|part| part.parse().unwrap()).collect()
}
