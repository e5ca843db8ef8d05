//! The OpenAPI 3.1 document, written from the table of routes, so that it cannot say anything else than what is answered.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use bytes::Bytes;
use serde_json::{Map, Value, json};

use super::problem::Code;
use super::routes::{Access, Content, ROUTES, Route};

/// The schemas by name, in JSON Schema 2020-12.
const SCHEMAS: &str = include_str!("openapi/schemas.json");

/// The document as it is served.
pub(super) fn document() -> Bytes {
    static DOCUMENT: LazyLock<Bytes> =
        LazyLock::new(|| serde_json::to_vec(&write()).map_or_else(|_never| Bytes::from_static(b"{}"), Bytes::from));
    DOCUMENT.clone()
}

fn write() -> Value {
    let mut paths: BTreeMap<&str, Map<String, Value>> = BTreeMap::new();
    for route in ROUTES {
        let method = route.method.to_ascii_lowercase();
        paths.entry(route.path).or_default().insert(method, operation(route));
    }
    // A test reads the file.
    let mut schemas: Value = serde_json::from_str(SCHEMAS).unwrap_or_default();
    schemas["Error"]["properties"]["error"]["properties"]["code"]["enum"] = json!(Code::ALL);
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Weft web API",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "Processes and figures of one host. A caller that the agent's kernel vouches for needs no key; \
                            others present the key of web.api_key_file."
        },
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {
                "bearer": { "type": "http", "scheme": "bearer" },
                "key": { "type": "apiKey", "in": "header", "name": "X-API-Key" }
            }
        }
    })
}

fn operation(route: &Route) -> Value {
    let mut operation = json!({
        "summary": route.summary,
        "operationId": format!("{:?}", route.endpoint),
        "parameters": parameters(route),
        "responses": responses(route),
        // An empty requirement: a local caller that the kernel vouches for.
        "security": match route.access {
            Access::Open => json!([]),
            Access::Granted => json!([{ "bearer": [] }, { "key": [] }, {}]),
        }
    });
    if let Some(schema) = route.body {
        // Commands go without one; only a definition has to be there.
        operation["requestBody"] =
            json!({ "required": schema == "Definition", "content": content(Content::Json(schema)) });
    }
    operation
}

fn parameters(route: &Route) -> Vec<Value> {
    let segment = route.path.split_once('{').and_then(|(_, rest)| rest.split_once('}')).map(|(name, _)| {
        let about = "A process by its id, its name, or the name that its instances share";
        json!({ "name": name, "in": "path", "required": true, "description": about, "schema": { "type": "string" } })
    });
    let query = route.query.iter().map(|parameter| {
        let schema: Value = serde_json::from_str(parameter.schema).unwrap_or_default();
        json!({ "name": parameter.name, "in": "query", "description": parameter.about, "schema": schema })
    });
    segment.into_iter().chain(query).collect()
}

fn responses(route: &Route) -> Map<String, Value> {
    let mut responses = Map::new();
    responses.insert(route.status.to_string(), json!({ "description": "Success", "content": content(route.content) }));
    let mut failures: Vec<Code> = vec![Code::InvalidRequest, Code::PermissionDenied];
    if route.access == Access::Granted {
        failures.push(Code::Unauthorized);
    }
    if route.body.is_some() {
        failures.extend([
            Code::ConfigParseError,
            Code::PayloadTooLarge,
            Code::UnsupportedMediaType,
            Code::RequestTimeout,
        ]);
    }
    failures.extend(route.failures);
    let mut by_status: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for code in failures {
        let name = serde_json::to_value(code).ok().and_then(|name| name.as_str().map(str::to_owned));
        by_status.entry(code.status().as_u16().to_string()).or_default().extend(name);
    }
    for (status, codes) in by_status {
        let failure = json!({ "description": codes.join(", "), "content": content(Content::Json("Error")) });
        responses.insert(status, failure);
    }
    responses
}

fn content(content: Content) -> Value {
    match content {
        Content::Json(schema) => json!({ "application/json": { "schema": { "$ref": reference(schema) } } }),
        Content::Text => text("text/plain"),
        Content::Style => text("text/css"),
        Content::Script => text("text/javascript"),
        Content::Page(schema) => {
            let mut both = text("text/html");
            both["application/json"] = json!({ "schema": { "$ref": reference(schema) } });
            both
        }
        Content::Socket => json!({}),
    }
}

fn text(media: &str) -> Value {
    json!({ media: { "schema": { "type": "string" } } })
}

fn reference(schema: &str) -> String {
    format!("#/components/schemas/{schema}")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn references(value: &Value, found: &mut BTreeSet<String>) {
        match value {
            Value::Object(members) => {
                found.extend(members.get("$ref").and_then(Value::as_str).map(str::to_owned));
                members.values().for_each(|member| references(member, found));
            }
            Value::Array(items) => items.iter().for_each(|item| references(item, found)),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
        }
    }

    #[test]
    fn every_schema_is_there_and_used() {
        let document = write();
        let mut used = BTreeSet::new();
        references(&document, &mut used);
        let schemas = document["components"]["schemas"].as_object().expect("an object of schemas");
        let there: BTreeSet<String> = schemas.keys().map(|name| reference(name)).collect();
        assert_eq!(used, there);
    }

    #[test]
    fn every_parameter_has_a_schema() {
        for parameter in ROUTES.iter().flat_map(|route| route.query) {
            let schema: Value = serde_json::from_str(parameter.schema).expect(parameter.name);
            assert!(schema["type"].is_string(), "{}", parameter.name);
        }
    }

    #[test]
    fn the_document_has_every_route_and_no_other() {
        let document = write();
        let paths = document["paths"].as_object().expect("paths");
        let documented: usize =
            paths.values().map(|operations| operations.as_object().expect("operations").len()).sum();
        assert_eq!(documented, ROUTES.len());
        for route in ROUTES {
            let operation = &paths[route.path][route.method.to_ascii_lowercase()];
            assert_eq!(operation["summary"], route.summary);
        }
    }

    #[test]
    fn names_of_operations_are_unique() {
        let document = write();
        let operations = document["paths"]
            .as_object()
            .expect("paths")
            .values()
            .flat_map(|path| path.as_object().expect("it").values());
        let names: Vec<&Value> = operations.map(|operation| &operation["operationId"]).collect();
        let unique: BTreeSet<String> = names.iter().map(|name| name.to_string()).collect();
        assert_eq!(unique.len(), names.len());
    }
}
